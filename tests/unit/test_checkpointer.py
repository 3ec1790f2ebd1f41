"""Saving in the background: one at a time, nothing of the training thread's, and no failure lost."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from infra.errors import HyperClipError
from training.checkpoint import TrainState, checkpoint_uri, load_checkpoint
from training.checkpointer import Checkpointer
from training.engine import Engine, FullState


class FakeEngine:
    """A state that changes with every step, as the engine hands it out."""

    def __init__(self) -> None:
        self.value = torch.zeros(3)
        self.given: list[FullState] = []

    def full_state(self, into: FullState | None = None) -> FullState:
        if into is None:
            into = FullState(parameters={"w": torch.empty(3)}, moments={"exp_avg.w": torch.zeros(3)}, buffers={})
        into.parameters["w"].copy_(self.value)
        self.given.append(into)
        return into


def checkpointer(folder: Path, on_saving: Callable[[], Any] = lambda: None) -> Checkpointer:
    return Checkpointer(str(folder), keep=2, on_saving=on_saving, on_saved=lambda _: None, in_use=list)


def save(saver: Checkpointer, engine: FakeEngine, step: int) -> None:
    saver.save(TrainState(step=step, seed=0, config_hash="a"), cast(Engine, engine))


def saved_value(folder: Path, step: int) -> float:
    return load_checkpoint(checkpoint_uri(str(folder), step))[1].parameters["w"][0].item()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    may_write = threading.Event()
    engine = FakeEngine()
    with checkpointer(tmp_path, may_write.wait) as saver:
        save(saver, engine, 1)
        engine.value += 5  # the step after: what is being saved must not follow
        assert not list(tmp_path.iterdir()), "save came back although nothing could be written"
        may_write.set()
    assert saved_value(tmp_path, 1) == 0.0


def test_the_next_save_waits_and_writes_into_the_same_memory(tmp_path: Path) -> None:
    engine = FakeEngine()
    with checkpointer(tmp_path) as saver:
        for step in (1, 2, 3):
            engine.value.fill_(step)
            save(saver, engine, step)
    assert [saved_value(tmp_path, step) for step in (2, 3)] == [2.0, 3.0]
    assert all(given is engine.given[0] for given in engine.given)


def test_a_failure_is_known_as_soon_as_the_save_has_ended(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with checkpointer(tmp_path / "file") as saver:
        save(saver, FakeEngine(), 1)
        saver.wait()
        assert saver.problem is not None and "could not be saved" in saver.problem


def test_a_failure_is_told_when_the_run_ends_with_another_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HyperClipError, match="another"), checkpointer(tmp_path / "file") as saver:
        save(saver, FakeEngine(), 1)
        raise HyperClipError("another")
    assert "could not be saved" in caplog.text
