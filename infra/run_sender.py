"""Bringing what a run leaves on disk to MLflow, in the background: MLflow may be down for as long as it likes.

The run appends lines to a local file, the spool, and goes on; a thread reads them from there, so memory does not grow with the
outage.  A line is a JSON object `{"step": 7, "timestamp_ms": 1700000000000, "loss": 2.5, ...}`.  Nothing is lost, because the
spool stays until somebody has sent it; nothing is doubled, because before its first send and after each failed one the thread
asks MLflow which steps of which metrics it has, and sends the others only.
"""

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tenacity import RetryCallState, Retrying, stop_when_event_set, wait_random_exponential

from infra.tracking import MAX_METRIC_ROWS, MetricRow, Tracker, TrackingConfig

logger = logging.getLogger(__name__)

SEND_EVERY_S = 1.0
"""Lines of fast steps go together: a call for each would take time from the training thread."""
LONGEST_PAUSE_S = 30.0
LONGEST_PAUSE_AT_END_S = 1.0


class RunStore(Protocol):
    """What is needed of MLflow: `infra.tracking.Tracker`."""

    def log_metric_rows(self, run_id: str, rows: Sequence[MetricRow]) -> None: ...

    def logged_steps(self, run_id: str) -> dict[str, set[int]]: ...

    def log_text(self, run_id: str, text: str, name: str) -> None: ...

    def artifact_names(self, run_id: str, folder: str) -> set[str]: ...


class RunSender:
    """The background thread.  No method but `close` ever waits."""

    def __init__(self, connect: Callable[[], RunStore], run_id: str, *, spool: Path) -> None:
        self._connect = connect
        self._run_id = run_id
        self._spool = spool
        self._sent_bytes = 0
        self._documents: deque[tuple[str, str]] = deque()
        self._store: RunStore | None = None
        self._known: dict[str, set[int]] = {}
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._failure: str | None = None
        self._random_wait = wait_random_exponential(multiplier=1, max=LONGEST_PAUSE_S)
        self._thread = threading.Thread(target=self._work, name="run-sender", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is a new line in the spool."""
        self._wake.set()

    def attach(self, name: str, text: str) -> None:
        """Store a small document as the artifact `folder/name`, unless the run has it."""
        self._documents.append((name, text))
        self._wake.set()

    def close(self, *, timeout_s: float) -> str | None:
        """Send the rest; returns what could not be sent in time and why, or None when everything arrived."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        self._given_up.set()
        if not self._thread.is_alive() and not self._failure:
            return None
        lines = sum(1 for _ in self._unsent_lines())
        return f"{lines:,} lines of metrics and {len(self._documents)} documents ({self._failure or 'MLflow does not answer'})"

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()  # asked before sending: what was appended before closing is sent
            retrying = Retrying(
                wait=self._pause_s,
                sleep=self._pause,
                stop=stop_when_event_set(self._given_up),
                after=self._note_failure,
                retry_error_callback=lambda _: None,
            )
            retrying(self._send)
            if closing or self._given_up.is_set():
                return
            self._closing.wait(SEND_EVERY_S)

    def _send(self) -> None:
        """Everything there is to send.  Raises whatever the store raises; what was sent until then stays sent."""
        if self._store is None:
            # our own waits are enough: MLflow's would hold the thread for minutes after the server is back
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            store = self._connect()
            self._known = store.logged_steps(self._run_id)
            self._store = store
        for rows, end in self._batches():
            fresh = [row for row in rows if row.step not in self._known.get(row.key, ())]
            if fresh:
                self._store.log_metric_rows(self._run_id, fresh)
            self._sent_bytes = end
        while self._documents:
            name, text = self._documents[0]
            if name not in self._store.artifact_names(self._run_id, name.rpartition("/")[0]):
                self._store.log_text(self._run_id, text, name)
            self._documents.popleft()
        if self._failure:
            logger.info("MLflow is back; everything was sent")
            self._failure = None

    def _batches(self) -> Iterator[tuple[list[MetricRow], int]]:
        """Unsent rows, as many at once as MLflow takes, each with the place in the spool where they end."""
        rows: list[MetricRow] = []
        end = self._sent_bytes
        for line in self._unsent_lines():
            record = json.loads(line)
            step, timestamp_ms = record.pop("step"), record.pop("timestamp_ms")
            if rows and len(rows) + len(record) > MAX_METRIC_ROWS:
                yield rows, end
                rows = []
            rows += [MetricRow(key, value, timestamp_ms, step) for key, value in record.items()]
            end += len(line)
        if rows:
            yield rows, end

    def _unsent_lines(self) -> Iterator[bytes]:
        if not self._spool.exists():
            return
        with self._spool.open("rb") as file:
            file.seek(self._sent_bytes)
            for line in file:
                if not line.endswith(b"\n"):  # being written
                    return
                yield line

    def _note_failure(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        if (error := state.outcome.exception()) is None:
            return
        self._store = None  # an answer may have been lost: ask again what has arrived
        if self._failure is None:
            logger.warning("MLflow cannot be reached; metrics wait in %s: %s", self._spool, error)
        self._failure = str(error)

    def _pause_s(self, state: RetryCallState) -> float:
        wait = self._random_wait(state)
        return min(wait, LONGEST_PAUSE_AT_END_S) if self._closing.is_set() else wait

    def _pause(self, seconds: float) -> None:
        event = self._given_up if self._closing.is_set() else self._closing
        event.wait(seconds)


def send_to_mlflow(config: TrackingConfig, run_id: str, *, spool: Path) -> RunSender:
    """A sender to a MLflow run.  Connecting, too, is left to the thread."""
    return RunSender(lambda: Tracker(config), run_id, spool=spool)
