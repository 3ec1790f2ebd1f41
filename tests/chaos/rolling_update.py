"""The champion moves again and again, now and then to a model that must not serve, while people use the service.

A real MLflow server, the service with two replicas of the image encoder, and a load over HTTP that never tries twice.
Half as many bad versions as good ones: missing or damaged files, wrong golden features, NaN, architectures that do not load.
Promise: no request fails; every answer is that of one version, as a single process computes it; a bad version takes no traffic
and is named with its reason, and the version before it goes on serving; pinned tasks stay with theirs.

python -m tests.chaos.rolling_update [--quick | --count N] [--seed S]
"""

import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.cluster import ClusterConfig, connected
from infra.model_registry import ModelRegistry
from infra.tracking import Tracker, TrackingConfig
from serving.client import ServiceError, ServingClient
from serving.config import DeploymentScale, RolloutConfig, ServingConfig
from serving.launch import running
from serving.schemas import ClassifyAnswer, EmbeddingAnswer, VersionStatus
from serving.task_record import specialization_id
from tests.chaos._model_versions import BAD, NAME, Published, publish_bad, publish_good
from tests.mlflow_server import MlflowServer
from tests.result import chaos_arguments, chaos_result, environment, measure, spread
from tests.unit.serving_helpers import picture
from training.preprocess import preprocess
from training.specialize import encode_texts, specialize

NUM_MODELS = 6
"""Good ones, promoted in turn: more than a replica holds at once."""
TASKS = [[f"thing {task} of {place}" for place in range(2 + task)] for task in range(5)]
PICTURES = [picture(seed) for seed in range(3)]
TEXTS = ["a thing", "another thing"]
CLIENTS = 4
ARRIVES_WITHIN_S = 120.0
DWELL_S = 0.5
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Given:
    """One answer, with what was asked."""

    at: float
    seconds: float
    kind: str
    task: int
    picture: int
    pinned: str | None
    answer: ClassifyAnswer | EmbeddingAnswer


class Load:
    """Clients that never stop and never try again; what they got is checked afterwards, so as not to slow the service down."""

    def __init__(self, url: str, *, pinned: str, seed: int) -> None:
        self._url, self._pinned, self._seed = url, pinned, seed
        self._enough = threading.Event()
        self.given: list[Given] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        with ServingClient(self._url) as client:
            while not self._enough.is_set():
                kind = rng.choices(["classify", "pinned", "at once", "picture", "text"], [6, 2, 1, 1, 1])[0]
                task, place = rng.randrange(len(TASKS)), rng.randrange(len(PICTURES))
                started = time.monotonic()
                try:
                    answer = self._ask(client, kind, task, PICTURES[place])
                except ServiceError as error:
                    self.failures.append(f"{kind}: {error}")
                    continue
                pinned = self._pinned if kind == "pinned" else None
                self.given.append(Given(started, time.monotonic() - started, kind, task, place, pinned, answer))

    def _ask(self, client: ServingClient, kind: str, task: int, image: bytes) -> ClassifyAnswer | EmbeddingAnswer:
        if kind == "picture":
            return client.embed_images([image])
        if kind == "text":
            return client.embed_texts(TEXTS)
        if kind == "at once":
            return client.classify_at_once(TASKS[task], [image])
        pinned = self._pinned if kind == "pinned" else None
        return client.classify(client.create_task(TASKS[task], pinned_version=pinned).task_id, [image], top_k=10)


class Expected:
    """What each version answers, by a single process; worked out once."""

    def __init__(self, published: list[Published]) -> None:
        self._bundles = {found.version: found.bundle for found in published}
        self._scores: dict[tuple[str, int, int], dict[str, tuple[float, float]]] = {}
        self._features: dict[tuple[str, str, int], torch.Tensor] = {}

    def problem(self, given: Given) -> str | None:
        """What is wrong with an answer."""
        answer = given.answer
        if (bundle := self._bundles.get(answer.model_version)) is None:
            return f"answered by version {answer.model_version}, which is bad"
        if given.pinned not in (None, answer.model_version):
            return f"a task pinned to {given.pinned} was answered by {answer.model_version}"
        if isinstance(answer, EmbeddingAnswer):
            features = self._known_features(answer.model_version, given.kind, given.picture)
            found = torch.tensor([result.embedding for result in answer.results])
            right = found.shape == features.shape and torch.allclose(found, features, rtol=0, atol=TOLERANCE)
            return None if right else f"features are not those of version {answer.model_version}"
        if answer.specialization_id != specialization_id(answer.task_id, bundle.digest):
            return f"the specialization is not that of version {answer.model_version}"
        scores = self._known_scores(answer.model_version, given.task, given.picture)
        for found_one in answer.results[0].predictions or ():
            score, match = scores[found_one.label]
            if abs(found_one.score - score) > TOLERANCE or abs(found_one.match - match) > TOLERANCE:
                return f"scores are not those of version {answer.model_version}"
        return None if answer.results[0].predictions else f"no prediction: {answer.results[0].problem}"

    def _known_scores(self, version: str, task: int, place: int) -> dict[str, tuple[float, float]]:
        if (version, task, place) not in self._scores:
            bundle = self._bundles[version]
            found = specialize(bundle, TASKS[task]).scores(bundle, self._image(version, place))
            rows = zip(TASKS[task], found.softmax[0].tolist(), found.match[0].tolist(), strict=True)
            self._scores[version, task, place] = {label: (score, match) for label, score, match in rows}
        return self._scores[version, task, place]

    def _known_features(self, version: str, kind: str, place: int) -> torch.Tensor:
        if (version, kind, place) not in self._features:
            bundle = self._bundles[version]
            with torch.no_grad():
                image = bundle.model.encode_image(self._image(version, place))
            self._features[version, kind, place] = image if kind == "picture" else encode_texts(bundle, TEXTS)
        return self._features[version, kind, place]

    def _image(self, version: str, place: int) -> torch.Tensor:
        return torch.from_numpy(preprocess(PICTURES[place], self._bundles[version].preprocess))[None]


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=20, quick_count=2)
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(levelname)s %(name)s: %(message)s")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
    with tempfile.TemporaryDirectory(prefix="hyperclip-rolling-update-") as temporary:
        server = MlflowServer(Path(temporary))
        server.start()
        try:
            return measured(Path(temporary), server, updates=arguments.count, seed=arguments.seed)
        finally:
            server.stop(signal.SIGTERM)


def measured(folder: Path, server: MlflowServer, *, updates: int, seed: int) -> int:
    rng = random.Random(seed)
    tracking = TrackingConfig(uri=server.uri)
    tracker = Tracker(tracking)
    registry = ModelRegistry(tracker)
    num_bad = max(1, updates // 2)
    good = [publish_good(tracker, folder / f"good-{place}", seed=place) for place in range(min(NUM_MODELS, updates + 1))]
    kinds = [list(BAD)[place % len(BAD)] for place in range(num_bad)]
    bad = {publish_bad(tracker, folder / f"bad-{place}", kind, seed=place): kind for place, kind in enumerate(kinds)}
    registry.promote(NAME, good[0].version)
    moves = [good[place % len(good)].version for place in range(1, updates + 1)]
    for version in bad:  # anywhere, also one after the other
        moves.insert(rng.randrange(len(moves) + 1), version)
    small = DeploymentScale(num_cpus=0.1)
    config = ServingConfig(
        tracking=tracking,
        model_name=NAME,
        task_store_uri=str(folder / "tasks"),
        cache_path=folder / "cache",
        port=0,
        allow_anonymous=True,
        ingress=small.rebuilt(max_ongoing_requests=256),
        hypernetwork=small,
        image_encoder=small.rebuilt(min_replicas=2, max_replicas=2),
        rollout=RolloutConfig(poll_interval_s=0.5, sync_interval_s=0.25),
    )
    failed: list[str] = []
    lost: list[str] = []
    switch_s: list[float] = []
    refuse_s: list[float] = []
    with (
        connected(ClusterConfig(num_cpus=2)),
        running(config) as url,
        ServingClient(url) as client,
        Load(url, pinned=good[0].version, seed=seed) as load,
    ):
        time.sleep(DWELL_S)
        for number, version in enumerate(moves):
            before = client.models()[0].version
            started = time.monotonic()
            registry.promote(NAME, version)
            is_bad = version in bad
            said = _until(client, lambda statuses, v=version, b=is_bad: _arrived(statuses, v, refused=b))
            took = time.monotonic() - started
            if said is None:
                lost.append(f"version {version} ({bad.get(version, 'good')}) did not arrive within {ARRIVES_WITHIN_S:g} s")
                continue
            (refuse_s if is_bad else switch_s).append(took)
            if is_bad and BAD[bad[version]][1] not in (said.reason or ""):
                failed.append(f"of version {version} ({bad[version]}) it is said: {said.reason}")
            time.sleep(DWELL_S)
            answered = {client.classify_at_once(TASKS[0], [PICTURES[0]]).model_version for _ in range(4)}
            if answered != {before if is_bad else version}:
                failed.append(f"after version {version} ({bad.get(version, 'good')}), {answered} answered")
            about = f"{bad.get(version, 'good')}: {said.reason}" if is_bad else "good"
            print(
                f"  {number + 1} of {len(moves)}: version {version} ({about}) after {took:.1f} s", file=sys.stderr, flush=True
            )
    expected = Expected(good)
    wrong = [found for given in load.given if (found := expected.problem(given))]
    for text, times in Counter([*load.failures, *wrong, *failed, *lost]).most_common(10):
        print(f"  {times} x {text}", file=sys.stderr)
    return chaos_result(
        "rolling_update",
        injected=len(switch_s) + len(refuse_s),
        lost=len(lost),
        failed=len(load.failures) + len(wrong) + len(failed),
        measures={
            "requests": measure(len(load.given) + len(load.failures), goal=(">=", 50)),
            "failed_requests": measure(len(load.failures), goal=("<=", 0)),
            "inconsistent_answers": measure(len(wrong), goal=("<=", 0)),
            "updates": measure(len(switch_s), goal=(">=", updates)),
            "refused": measure(len(refuse_s), goal=(">=", num_bad)),
            "not_serving_as_promised": measure(len(failed), goal=("<=", 0)),
            "versions_that_answered": measure(len({given.answer.model_version for given in load.given})),
            "pinned_answers": measure(sum(given.pinned is not None for given in load.given), goal=(">=", 1)),
        },
        seconds_to_switch=spread(switch_s) if switch_s else None,
        seconds_to_refuse=spread(refuse_s) if refuse_s else None,
        request_seconds=spread([given.seconds for given in load.given]) if load.given else None,
        bad_kinds=sorted(set(bad.values())),
        seed=seed,
        **environment("ray", "mlflow", "torch"),
    )


def _until(client: ServingClient, found: Callable[[tuple[VersionStatus, ...]], VersionStatus | None]) -> VersionStatus | None:
    give_up_at = time.monotonic() + ARRIVES_WITHIN_S
    while time.monotonic() < give_up_at:
        if (status := found(client.versions())) is not None:
            return status
        time.sleep(0.1)
    return None


def _arrived(statuses: tuple[VersionStatus, ...], version: str, *, refused: bool) -> VersionStatus | None:
    wanted = "refused" if refused else "champion"
    return next((found for found in statuses if found.version == version and found.state == wanted), None)


if __name__ == "__main__":
    sys.exit(main())
