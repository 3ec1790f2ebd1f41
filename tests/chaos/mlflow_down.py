"""The MLflow server dies in the middle of training, stays away, and comes back.

A real loop (model, optimizer, metrics log, checkpoints) trains against a real server over HTTP; the server is killed for ten
minutes.  Promise: training waits for tracking at most 1 % of its time, and in the end MLflow has every value of metrics.jsonl
exactly once, and every checkpoint's manifest.

python -m tests.chaos.mlflow_down [--quick | --count N] [--seed S]
"""

import json
import logging
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.tracking import Tracker, TrackingConfig
from tests.mlflow_server import MlflowServer
from tests.result import chaos_arguments, chaos_result, environment, measure, spread
from tests.training_runs import request_of, small_config
from training.checkpoint import TrainState, save_checkpoint
from training.engine import FullState
from training.interval import Interval, peak_memory
from training.metrics_log import MetricsLog, metrics_uri
from training.model.hyperclip import HyperClip
from training.model.registry import model_config

LOG_EVERY_STEPS = 5
CHECKPOINT_EVERY_STEPS = 200
UP_S = 10.0
NUM_LOGS = 20
"""The server is up at least that long, and for that many logged intervals, before, between and after its deaths."""


@dataclass(frozen=True)
class Times:
    tracking_s: float
    total_s: float
    step_s: list[float]


class Training(threading.Thread):
    """Trains until told to stop."""

    def __init__(self, log: MetricsLog, folder: Path) -> None:
        super().__init__(name="training")
        self._log, self._folder = log, folder
        self._enough = threading.Event()
        self._records: list[tuple[float, float, float]] = []  # when a logged interval ended, its length, its tracking wait
        self.error: BaseException | None = None
        self.checkpoints = 0

    def run(self) -> None:
        try:
            self._train()
        except BaseException as error:  # told by `finish`
            self.error = error

    def finish(self) -> None:
        self._enough.set()
        self.join()
        if self.error:
            raise self.error

    def wait_for_logs(self, count: int) -> None:
        """Until so many more intervals are logged, so that each phase of the run has steps to measure."""
        enough = len(self._records) + count
        while len(self._records) < enough and self.is_alive():
            time.sleep(0.05)

    def since(self, start: float, end: float) -> Times:
        """Where the time between two moments went."""
        chosen = [record for record in self._records if start <= record[0] <= end]
        lengths = [length for _, length, _ in chosen]
        return Times(
            tracking_s=sum(share * length for _, length, share in chosen),
            total_s=sum(lengths),
            step_s=[length / LOG_EVERY_STEPS for length in lengths],
        )

    def _train(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = HyperClip(model_config("hyperclip_test"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        images = torch.randn(64, 3, 32, 32)
        interval = Interval()
        step = 0
        while not self._enough.is_set():
            loss = model.encode_image(images).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            interval.step_done(samples=len(images))
            step += 1
            if step % LOG_EVERY_STEPS == 0:
                figures = interval.take()
                with interval.waiting_for("tracking"):
                    self._log.add(step - 1, {"loss": loss.item(), **figures, **peak_memory(torch.device("cpu"))})
                length = figures["step_seconds"] * LOG_EVERY_STEPS
                self._records.append((time.monotonic(), length, figures["tracking_wait_share"]))
            if step % CHECKPOINT_EVERY_STEPS == 0:
                with interval.waiting_for("checkpoint"):
                    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
                    state = TrainState(step=step, seed=0, config_hash="a")
                    manifest = save_checkpoint(str(self._folder), state, FullState(parameters, {}, {}))
                with interval.waiting_for("tracking"):
                    self._log.record_checkpoint(manifest)
                self.checkpoints += 1


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=1, quick_count=1)
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(levelname)s %(name)s: %(message)s")
    down_s = 20.0 if arguments.quick else 600.0
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="hyperclip-mlflow-down-") as temporary:
        folder = Path(temporary)
        server = MlflowServer(folder)
        server.start()
        try:
            return measured(server, folder, rng, count=arguments.count, down_s=down_s, seed=arguments.seed)
        finally:
            server.stop(signal.SIGTERM)


def measured(server: MlflowServer, folder: Path, rng: random.Random, *, count: int, down_s: float, seed: int) -> int:
    tracking = TrackingConfig(uri=server.uri)
    tracker = Tracker(tracking)
    run_id = tracker.start_run("mlflow_down")
    output = folder / "output"
    log = MetricsLog(request_of(small_config({}), folder, output, tracking=tracking, run_id=run_id), first_step=0)
    training = Training(log, folder / "checkpoints")
    began = time.monotonic()
    training.start()
    outages: list[tuple[float, float]] = []
    for _ in range(count):
        training.wait_for_logs(NUM_LOGS)
        time.sleep(UP_S + rng.uniform(0, 2))
        server.stop(signal.SIGKILL if len(outages) % 2 == 0 else signal.SIGTERM)
        down_at = time.monotonic()
        time.sleep(down_s)
        outages.append((down_at, time.monotonic()))
        server.start()
    training.wait_for_logs(NUM_LOGS)
    time.sleep(UP_S)
    training.finish()
    ended = time.monotonic()
    log.close()
    lost, doubled, wrong, logged = compared(tracker, run_id, output)
    manifests = len(tracker.artifact_names(run_id, "checkpoints"))
    whole, down = training.since(began, ended), [training.since(*outage) for outage in outages]
    down_total, down_tracking = sum(times.total_s for times in down), sum(times.tracking_s for times in down)
    return chaos_result(
        "mlflow_down",
        injected=len(outages),
        lost=lost + training.checkpoints - manifests,
        failed=doubled + wrong,
        measures={
            "blocked_share": measure(whole.tracking_s / whole.total_s, goal=("<=", 0.01)),
            "blocked_share_while_down": measure(down_tracking / down_total, goal=("<=", 0.01)),
            "seconds_down": measure(sum(end - start for start, end in outages), unit="s"),
            "values_logged": measure(logged),
            "values_doubled": measure(doubled, goal=("<=", 0)),
            "checkpoint_manifests": measure(manifests),
        },
        step_seconds={
            "before": spread(training.since(began, outages[0][0]).step_s),
            "server down": spread([length for times in down for length in times.step_s]),
            "after": spread(training.since(outages[-1][1], ended).step_s),
        },
        seed=seed,
        **environment("mlflow", "torch", "tenacity"),
    )


def compared(tracker: Tracker, run_id: str, output: Path) -> tuple[int, int, int, int]:
    """(lost, doubled, wrong, logged) values, MLflow against metrics.jsonl."""
    expected: Counter[tuple[str, int, float]] = Counter()
    for line in Path(metrics_uri(str(output))).read_text().splitlines():
        record = json.loads(line)
        expected.update((key, record["step"], value) for key, value in record.items() if key not in ("step", "timestamp_ms"))
    found: Counter[tuple[str, int, float]] = Counter()
    for key in {key for key, _, _ in expected}:
        found.update((key, step, value) for step, value in tracker.metric_history(run_id, key))
    doubled = sum(times - 1 for times in found.values())
    return (expected - found).total(), doubled, len(found.keys() - expected.keys()), expected.total()


if __name__ == "__main__":
    sys.exit(main())
