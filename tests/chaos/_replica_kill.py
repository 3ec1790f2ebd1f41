"""What `replica_kill` does: a service, clients that never rest, and a killer."""

import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ray import serve

from infra.cluster import ClusterConfig, connected
from serving.client import ServiceError, ServingClient
from serving.config import DeploymentScale, ServingConfig
from serving.launch import APPLICATION_NAME, running
from tests.chaos._processes import MARK, processes_of
from tests.result import chaos_result, environment, measure, spread
from tests.unit.serving_helpers import make_bundle, picture

DEPLOYMENTS = ("ImageEncoder", "Hypernetwork", "Ingress")
NUM_CLIENTS = 4
PAUSE_S = 0.05
"""Of a client after each answer: a load that is always there, and far from what two cores can do."""
READY_WITHIN_S = 180
TWO = DeploymentScale(min_replicas=2, max_replicas=2, num_cpus=0.1, max_ongoing_requests=64)


@dataclass
class Seen:
    """What the clients saw; each counts under the lock."""

    calls: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    """First answers that were an error, by what it said."""
    failed: list[str] = field(default_factory=list)
    """Calls that failed twice."""
    wrong: list[str] = field(default_factory=list)
    """Answers that differ from those before the first kill."""
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """Calls in turns, without end."""

    def __init__(self, base_url: str, number: int, seen: Seen, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._base_url, self._number, self._seen, self._stop_event = base_url, number, seen, stop
        self._image = picture(number)

    def run(self) -> None:
        with ServingClient(self._base_url, timeout_s=60) as client:
            labels = [f"thing {self._number}", "stuff", "matter"]
            task = client.create_task(labels).task_id
            expected = _scores(client, task, self._image)
            number = 0
            while not self._stop_event.is_set():
                number += 1
                self._call("classify", lambda: self._compare(expected, _scores(client, task, self._image)))
                if number % 4 == 0:
                    self._call("known task", lambda: client.create_task(labels))
                if number % 8 == 0:
                    new = [f"new {self._number} {number}", "other"]
                    self._call("new task", lambda new=new: client.create_task(new))  # type: ignore[misc]
                    self._call("features", lambda: client.embed_texts(["a text"]))
                time.sleep(PAUSE_S)

    def _call(self, what: str, call: Callable[[], object]) -> None:
        started = time.perf_counter()
        try:
            call()
        except ServiceError as error:
            with self._seen.lock:
                self._seen.retried[f"{what}: {error.status} {error.problem.type if error.problem else error}"[:120]] += 1
            time.sleep(error.retry_after_s or 0)
            try:
                call()
            except ServiceError as second:
                with self._seen.lock:
                    self._seen.failed.append(f"{what}: {error}; then {second}")
        with self._seen.lock:
            self._seen.calls[what] += 1
            self._seen.slowest_s = max(self._seen.slowest_s, time.perf_counter() - started)

    def _compare(self, expected: dict[str, float], found: dict[str, float]) -> None:
        if found.keys() != expected.keys() or any(abs(found[label] - expected[label]) > 1e-4 for label in found):
            with self._seen.lock:
                self._seen.wrong.append(f"{found} instead of {expected}")


def measured(*, count: int, seed: int) -> int:
    """Kill so many replicas, print the result, return the exit status."""
    rng = random.Random(seed)
    mark = os.environ[MARK] = secrets.token_hex(8)
    seen, stop = Seen(), threading.Event()
    recovery_s: dict[str, list[float]] = {name: [] for name in DEPLOYMENTS}
    with tempfile.TemporaryDirectory(prefix="hyperclip-replica-kill-") as temporary:
        folder = Path(temporary)
        config = ServingConfig(
            bundle_uri=str(make_bundle(folder / "bundle")), task_store_uri=str(folder / "tasks"), port=0,
            ingress=TWO, hypernetwork=TWO, image_encoder=TWO,
        )  # fmt: skip
        with connected(ClusterConfig(num_cpus=2)), running(config) as base_url:
            _wait_until_ready(mark, gone=None)
            clients = [Client(base_url, number, seen, stop) for number in range(NUM_CLIENTS)]
            for client in clients:
                client.start()
            for number in range(count):
                _wait_for_calls(seen, clients)
                name = DEPLOYMENTS[number % len(DEPLOYMENTS)]
                victim = rng.choice(_replicas(mark, name))
                os.kill(victim, signal.SIGKILL)
                recovery_s[name].append(_wait_until_ready(mark, gone=(name, victim)))
                print(
                    f"  kill {number + 1} of {count}: {name}, ready after {recovery_s[name][-1]:.1f} s, "
                    f"{sum(seen.calls.values())} calls, {sum(seen.retried.values())} asked again, {len(seen.failed)} failed",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            _wait_for_calls(seen, clients)
            stop.set()
            for client in clients:
                client.join()
    return chaos_result(
        "replica_kill",
        injected=sum(map(len, recovery_s.values())),
        lost=len(seen.wrong),
        failed=len(seen.failed),
        measures={
            "calls": measure(sum(seen.calls.values())),
            "asked_again": measure(sum(seen.retried.values())),
            "slowest_call": measure(seen.slowest_s, unit="s"),
        },
        ready_again_s={name: spread(times) for name, times in recovery_s.items() if times},
        calls=dict(seen.calls),
        first_errors=dict(seen.retried),
        failures=seen.failed[:3],
        seed=seed,
        **environment("ray"),
    )


def _scores(client: ServingClient, task: str, image: bytes) -> dict[str, float]:
    predictions = client.classify(task, [image]).results[0].predictions
    assert predictions is not None
    return {found.label: found.score for found in predictions}


def _replicas(mark: str, name: str) -> list[int]:
    """Processes of a deployment, by the title that Ray gives them."""
    title = f"ray::ServeReplica:{APPLICATION_NAME}:{name}"[:39]  # Serve may cut the class name short
    return [process.pid for process in processes_of(mark) if process.command.startswith(title)]


def _wait_until_ready(mark: str, *, gone: tuple[str, int] | None) -> float:
    """Until Serve calls every replica running and each deployment has two processes, none of them the killed one."""
    started = time.monotonic()
    while time.monotonic() < started + READY_WITHIN_S:
        deployments = serve.status().applications[APPLICATION_NAME].deployments
        running = all(deployments[name].replica_states == {"RUNNING": 2} for name in DEPLOYMENTS)
        found = {name: _replicas(mark, name) for name in DEPLOYMENTS}
        if running and all(len(pids) == 2 for pids in found.values()) and (gone is None or gone[1] not in found[gone[0]]):
            return time.monotonic() - started
        time.sleep(0.1)
    raise TimeoutError(f"not ready again after {READY_WITHIN_S} s: {deployments}, {found}")


def _wait_for_calls(seen: Seen, clients: list[Client]) -> None:
    """Until there is load: every client has made some more calls."""
    enough = sum(seen.calls.values()) + 5 * len(clients)
    while sum(seen.calls.values()) < enough:
        assert all(client.is_alive() for client in clients), "a client has ended"
        time.sleep(0.02)
