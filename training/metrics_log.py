"""What a run tells about itself: `metrics.jsonl`, and the same in MLflow where a run is given.

    {"step": 7, "timestamp_ms": 1700000000000, "loss": 2.5, ...}                step 7 was done, counted from 0
    {"step": 8, "timestamp_ms": 1700000000000, "evaluation.accuracy": 0.4, ...}  the model after 8 steps was evaluated

A resumed run drops the lines of steps that it does again and writes them anew; MLflow keeps the first measurement of each.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from infra import storage
from infra.run_sender import RunSender, send_to_mlflow
from training.checkpoint import CheckpointManifest, checkpoint_uri
from training.config import TrainRequest

logger = logging.getLogger(__name__)

EVALUATION_PREFIX = "evaluation."
MANIFESTS = "checkpoint-manifests"
FLUSH_TIMEOUT_S = 60.0


class MetricsLog:
    """Appends lines to a local file; object stores get the whole file with each checkpoint.  Methods never wait for MLflow."""

    def __init__(self, request: TrainRequest, *, first_step: int) -> None:
        self._output_uri = request.output_uri
        self._uri = metrics_uri(request.output_uri)
        self._manifests_uri = storage.join(request.output_uri, MANIFESTS)
        self._local = storage.is_local(self._uri)
        self._temporary = None if self._local else tempfile.mkdtemp(prefix="hyperclip-metrics-")
        self._path = storage.local_path(self._uri) if self._local else Path(self._temporary or "") / "metrics.jsonl"
        kept = [record for record in _read_records(self._uri) if _stays(record, first_step)]
        self.evaluated_steps = {int(record["step"]) for record in kept if _is_evaluation(record)}
        storage.write_atomic(str(self._path), "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("ab")
        self._sender: RunSender | None = None
        if request.tracking and request.run_id:
            self._sender = send_to_mlflow(request.tracking, request.run_id, spool=self._path)
            for uri in storage.list_files(self._manifests_uri, suffix=".json"):  # a killed run may not have sent them
                self._attach(uri.rpartition("/")[2], storage.read_bytes(uri).decode())
            self._sender.wake()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line, there for every reader when the call returns."""
        record = {"step": step, "timestamp_ms": time.time_ns() // 1_000_000, **metrics}
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        if self._sender:
            self._sender.wake()

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluated_steps.add(step)
        self.add(step, {f"{EVALUATION_PREFIX}{name}": value for name, value in metrics.items()})

    def persist(self) -> None:
        """Make the lines so far survive a power cut, or the loss of this machine where the run writes to an object store."""
        if self._local:
            storage.sync_file(self._path)
        else:
            storage.write_atomic(self._uri, self._path.read_bytes())

    def record_checkpoint(self, manifest: CheckpointManifest) -> None:
        """Keep a checkpoint's manifest, also after the checkpoint itself is gone, and hand it to MLflow."""
        name = f"{checkpoint_uri('', manifest.state.step)}.json"
        text = manifest.model_dump_json(indent=1)
        storage.write_atomic(storage.join(self._manifests_uri, name), text)
        self._attach(name, text)

    def close(self) -> None:
        """Persist, and send what is left to MLflow within `FLUSH_TIMEOUT_S`; training does not fail if that cannot be done."""
        self.persist()
        self._file.close()
        if self._sender and (unsent := self._sender.close(timeout_s=FLUSH_TIMEOUT_S)):
            logger.warning(
                "MLflow has not got %s; they stay in %s. Run the same command again when MLflow is back: it sends them",
                unsent,
                self._uri,
            )
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _attach(self, name: str, text: str) -> None:
        if self._sender:
            self._sender.attach(f"checkpoints/{name}", text)


def metrics_uri(output_uri: str) -> str:
    return storage.join(output_uri, "metrics.jsonl")


def read_metrics(output_uri: str) -> list[dict[str, float]]:
    """What a run has logged of its steps, one dictionary a logged step; evaluations are not among them."""
    return [record for record in _read_records(metrics_uri(output_uri)) if not _is_evaluation(record)]


def _read_records(uri: str) -> list[dict[str, float]]:
    if not storage.exists(uri):
        return []
    # a power cut can leave a part of the last line
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines(keepends=True) if line.endswith(b"\n")]


def _is_evaluation(record: Mapping[str, float]) -> bool:
    return any(key.startswith(EVALUATION_PREFIX) for key in record)


def _stays(record: Mapping[str, float], first_step: int) -> bool:
    """Whether a line is of what the checkpoint after `first_step` steps contains."""
    return record["step"] <= first_step if _is_evaluation(record) else record["step"] < first_step
