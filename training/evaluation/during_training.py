"""Evaluation on a schedule, off the critical path: checkpoints on disk, one at a time, in a process of its own."""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from infra import artefacts
from training.config import TrainRequest
from training.evaluation.checkpoint_evaluation import CheckpointEvaluation, EvaluationFigures

logger = logging.getLogger(__name__)

PATIENCE_AT_END_S = 300.0


@dataclass(frozen=True)
class _Running:
    step: int
    checkpoint_uri: str
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class CheckpointEvaluator:
    """At most one evaluation runs.  Its failure is a warning: a run is not lost for a figure about it."""

    def __init__(self, request: TrainRequest) -> None:
        self._request = request
        self._running: _Running | None = None
        self._lock = threading.Lock()  # checkpoints come from the background thread, results are taken by the loop
        self._stack = contextlib.ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperclip-evaluation-")))

    def is_due(self, step: int) -> bool:
        every = self._request.config.evaluation.every_steps
        return bool(every and self._request.evaluation_shards_uri and step and step % every == 0)

    def start(self, step: int, checkpoint_uri: str) -> None:
        """Evaluate a checkpoint that is whole."""
        with self._lock:
            if self._running is not None:
                logger.warning("checkpoint %s is not evaluated: that of step %d still is", checkpoint_uri, self._running.step)
                return
            folder = self._folder / str(step)
            folder.mkdir()
            request = CheckpointEvaluation(
                checkpoint_uri=checkpoint_uri,
                shards_uri=self._request.evaluation_shards_uri or "",
                config=self._request.config,
                result_path=str(folder / "result.json"),
            )
            (folder / "request.json").write_text(request.model_dump_json())
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            with (folder / "log.txt").open("wb") as log:
                process = subprocess.Popen(  # noqa: S603 (our own module)
                    [sys.executable, "-m", CheckpointEvaluation.__module__, str(folder / "request.json")],
                    env=environment,
                    stdin=subprocess.PIPE,  # never written to: it closes when this process ends, however it does
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self._running = _Running(step, checkpoint_uri, process, folder)

    def in_use(self) -> list[str]:
        """Checkpoints that must stay for now."""
        running = self._running
        return [running.checkpoint_uri] if running else []

    def take(self) -> tuple[int, dict[str, float]] | None:
        """Step and figures of an evaluation that has finished since the last call."""
        with self._lock:
            running = self._running
            if running is None or running.process.poll() is None:
                return None
            self._running = None
        if running.process.returncode != 0:
            reason = running.log.read_text(errors="replace").strip().rpartition("\n")[2]
            logger.warning("the evaluation of %s failed: %s", running.checkpoint_uri, reason or running.process.returncode)
            return None
        return running.step, artefacts.read_model(str(running.result), EvaluationFigures).metrics

    def finish(self) -> tuple[int, dict[str, float]] | None:
        """As `take`, after waiting for the one that runs, at most `PATIENCE_AT_END_S`."""
        if self._running is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.process.wait(PATIENCE_AT_END_S)
        return self.take()

    def close(self) -> None:
        if self._running is not None:
            self._running.process.kill()
            self._running.process.wait()
        self._stack.close()
