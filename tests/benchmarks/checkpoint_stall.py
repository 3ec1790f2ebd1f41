"""How long a checkpoint keeps the training thread, against a synchronous save and MLflow upload of the same state.

Both sides save one DeepSpeed engine's state (ZeRO-1, Adam moments) to the same disk, in turns, with warm buffers.  MLflow is
SQLite and a folder, its fastest set-up.  Between saves the training thread goes on with steps of its own, so that what the
background thread takes from them is seen as well.

python -m tests.benchmarks.checkpoint_stall [--quick]
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from infra.tracking import Tracker, TrackingConfig
from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, seconds, spread
from tests.training_runs import small_config
from training.checkpoint import TrainState, save_checkpoint
from training.checkpointer import Checkpointer
from training.conditioning_config import ConditioningConfig
from training.engine import Engine, FullState
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.registry import model_config
from training.objective import ContrastiveObjective

GOAL = 0.10


def main() -> int:
    arguments = benchmark_arguments(__doc__ or "")
    rounds = 3 if arguments.quick else 7
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hyperclip-stall-") as temporary, _one_rank(Path(temporary)):
        model = HyperClip(benchmark_model(quick=arguments.quick))
        objective = ContrastiveObjective(model, ConditioningConfig(), seed=0)
        engine = Engine(objective, small_config({"zero_stage": 1}), device=torch.device("cpu"))
        return measured(engine, Path(temporary), rounds=rounds, model=model)


def benchmark_model(*, quick: bool) -> HyperClipConfig:
    """About 90 M parameters: EfficientNet-B0 with the full vocabulary and a third of the paper's text tower."""
    config = model_config("hyperclip_quickstart" if quick else "hyperclip_b0")
    return config if quick else replace(config, text=replace(config.text, layers=4))


def measured(engine: Engine, folder: Path, *, rounds: int, model: nn.Module) -> int:
    tracker = Tracker(TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", artifact_uri=str(folder / "artifacts")))
    buffers = engine.full_state()
    state_bytes = sum(value.nbytes for part in vars(buffers).values() for value in part.values())
    background = Background(engine, folder / "background")
    first = background.stall()
    synchronous = Synchronous(engine, folder / "synchronous", tracker, buffers)
    synchronous.save()
    alone = [background.step() for _ in range(20)]
    found = interleaved({"ours": background.stall, "synchronous": synchronous.save}, rounds=rounds)
    background.close()
    ratio = statistics.median(found["ours"]) / statistics.median(found["synchronous"])
    return benchmark_result(
        "checkpoint_stall",
        ratio=ratio,
        goal=("<=", GOAL),
        measures={
            "stall_s": measure(statistics.median(found["ours"]), unit="s"),
            "synchronous_s": measure(statistics.median(found["synchronous"]), unit="s"),
            "first_stall_s": measure(first, unit="s"),  # its buffers are new memory
            "background_s": measure(statistics.median(background.background_s), unit="s"),
            "step_slowdown_during_save": measure(statistics.median(background.steps_s) / statistics.median(alone), unit="x"),
        },
        spread={name: spread(values) for name, values in found.items()},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        state_mib=round(state_bytes / 2**20),
        **environment("torch", "deepspeed", "safetensors", "mlflow"),
    )


class Background:
    """Ours."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._step = 0
        self._saver = Checkpointer(str(folder), keep=1, on_saving=lambda: None, on_saved=self._done, in_use=list)
        self._layer = torch.randn(768, 768)
        self._saved_step = 0
        self.background_s: list[float] = []
        self.steps_s: list[float] = []

    def stall(self) -> float:
        """Save once; then train until the checkpoint is whole.  Returns how long the save kept the training thread."""
        self._step += 1
        state = TrainState(step=self._step, seed=0, config_hash="a")
        stalled = seconds(lambda: self._saver.save(state, self._engine))
        started = time.perf_counter()
        while self._saved_step < self._step and self._saver.problem is None:
            self.steps_s.append(self.step())
        self.background_s.append(time.perf_counter() - started)
        if self._saver.problem:
            raise RuntimeError(self._saver.problem)
        return stalled

    def step(self) -> float:
        """Something like a step's work: matrix products of the text tower's size."""
        return seconds(lambda: [self._layer @ self._layer for _ in range(20)])

    def close(self) -> None:
        with self._saver:
            pass

    def _done(self, _: object) -> None:
        self._saved_step = self._step


class Synchronous:
    """The same checkpoint, written and uploaded before the next step."""

    def __init__(self, engine: Engine, folder: Path, tracker: Tracker, buffers: FullState) -> None:
        self._engine, self._folder, self._tracker, self._buffers = engine, folder, tracker, buffers
        self._run_id = tracker.start_run("checkpoint_stall")

    def save(self) -> float:
        return seconds(self._save_and_upload)

    def _save_and_upload(self) -> None:
        state = TrainState(step=1, seed=0, config_hash="a")
        manifest = save_checkpoint(str(self._folder), state, self._engine.full_state(self._buffers))
        self._tracker.log_artifact(self._run_id, Path(manifest.uri), folder="checkpoint")


@contextmanager
def _one_rank(folder: Path) -> Iterator[None]:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
