"""What a run leaves on disk reaches the store once, however often the store fails."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from infra import run_sender
from infra.run_sender import RunSender
from infra.tracking import MAX_METRIC_ROWS, MetricRow


class FakeStore:
    """A MLflow in memory that answers, fails, or takes a batch and loses the answer, as the script says."""

    def __init__(self, script: Sequence[str] = ()) -> None:
        self.rows: list[MetricRow] = []
        self.texts: dict[str, str] = {}
        self.batches: list[int] = []
        self.script = list(script)
        self.connections = 0
        self.down = threading.Event()

    def connect(self) -> "FakeStore":
        self.connections += 1
        if self.down.is_set():
            raise ConnectionError("refused")
        return self

    def log_metric_rows(self, run_id: str, rows: Sequence[MetricRow]) -> None:
        assert run_id == "run"
        event = self.script.pop(0) if self.script else "take"
        if event == "refuse":
            raise ConnectionError("refused")
        self.rows += rows
        self.batches.append(len(rows))
        if event == "lose the answer":
            raise TimeoutError("no answer")

    def logged_steps(self, run_id: str) -> dict[str, set[int]]:
        assert run_id == "run"
        found: dict[str, set[int]] = {}
        for row in self.rows:
            found.setdefault(row.key, set()).add(row.step)
        return found

    def log_text(self, run_id: str, text: str, name: str) -> None:
        assert run_id == "run"
        self.texts[name] = text

    def artifact_names(self, run_id: str, folder: str) -> set[str]:
        assert run_id == "run"
        return {name for name in self.texts if name.startswith(f"{folder}/")}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_sender, "SEND_EVERY_S", 0.0)
    monkeypatch.setattr(run_sender, "LONGEST_PAUSE_S", 0.01)


@pytest.fixture
def spool(tmp_path: Path) -> Callable[[int, int], Path]:
    """Append lines of two metrics for steps [first, end)."""
    path = tmp_path / "metrics.jsonl"

    def append(first: int, end: int) -> Path:
        with path.open("a") as file:
            for step in range(first, end):
                file.write(json.dumps({"step": step, "timestamp_ms": 1000 + step, "loss": step / 2, "rate": 0.1}) + "\n")
        return path

    return append


def expected(end: int) -> list[MetricRow]:
    rows = [(MetricRow("loss", s / 2, 1000 + s, s), MetricRow("rate", 0.1, 1000 + s, s)) for s in range(end)]
    return [row for pair in rows for row in pair]


@pytest.mark.parametrize(
    "script", [[], ["refuse"], ["lose the answer"], ["take", "lose the answer", "refuse", "lose the answer"]]
)
def test_every_row_arrives_once_with_the_time_it_was_measured(script: list[str], spool: Callable[[int, int], Path]) -> None:
    store = FakeStore(script)
    sender = RunSender(store.connect, "run", spool=spool(0, 3))
    for step in range(3, 6):
        spool(step, step + 1)
        sender.wake()
    assert sender.close(timeout_s=30) is None
    assert store.rows == expected(6)


def test_rows_go_in_batches_that_mlflow_takes(spool: Callable[[int, int], Path]) -> None:
    store = FakeStore()
    assert RunSender(store.connect, "run", spool=spool(0, 1200)).close(timeout_s=30) is None
    assert store.rows == expected(1200)
    assert max(store.batches) == MAX_METRIC_ROWS


def test_steps_that_the_run_has_already_are_not_sent_again(spool: Callable[[int, int], Path]) -> None:
    store = FakeStore()
    store.rows = expected(4)  # of a killed attempt, which measured the same steps at another time
    assert RunSender(store.connect, "run", spool=spool(2, 6)).close(timeout_s=30) is None
    assert store.rows == expected(6)


def test_a_line_that_is_being_written_waits(spool: Callable[[int, int], Path]) -> None:
    store = FakeStore()
    path = spool(0, 2)
    with path.open("a") as file:
        file.write('{"step": 2, "timestamp')
    assert RunSender(store.connect, "run", spool=path).close(timeout_s=30) is None
    assert store.rows == expected(2)


def test_a_document_is_stored_once(spool: Callable[[int, int], Path]) -> None:
    store = FakeStore()
    store.texts["checkpoints/a.json"] = "first"
    sender = RunSender(store.connect, "run", spool=spool(0, 1))
    sender.attach("checkpoints/a.json", "again")
    sender.attach("checkpoints/b.json", "b")
    assert sender.close(timeout_s=30) is None
    assert store.texts == {"checkpoints/a.json": "first", "checkpoints/b.json": "b"}


def test_what_cannot_be_sent_is_told_with_the_reason_and_the_next_sender_sends_it(spool: Callable[[int, int], Path]) -> None:
    store = FakeStore()
    store.down.set()
    sender = RunSender(store.connect, "run", spool=spool(0, 5))
    sender.attach("checkpoints/a.json", "a")
    unsent = sender.close(timeout_s=0.2)
    assert unsent is not None and "5 lines" in unsent and "1 documents" in unsent and "refused" in unsent
    store.down.clear()
    assert RunSender(store.connect, "run", spool=spool(5, 5)).close(timeout_s=30) is None
    assert store.rows == expected(5)
