"""Chaos runs, small: `make chaos` runs them in full."""

import logging
from pathlib import Path

import pytest

from tests.chaos import address_tricks, damaged_checkpoints, origin_faults, train_kill

pytestmark = pytest.mark.integration


def test_training_killed_in_the_middle_of_a_checkpoint_ends_bit_equal(tmp_path: Path) -> None:
    tally = train_kill.Tally()
    train_kill.strike(tmp_path, tally, count=1, seed=0, tracker=None)
    assert tally.kills == 1
    assert tally.problems == []


def test_damaged_checkpoints_are_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        kinds, problems = damaged_checkpoints.strike(count=len(damaged_checkpoints.DAMAGES), seed=1)
    assert kinds.total() == len(damaged_checkpoints.DAMAGES)
    assert problems == []


def test_every_fault_of_an_origin_has_its_word() -> None:
    injected, found = origin_faults.strike(count=2 * len(origin_faults.kinds("")), seed=1, workers=0, timeout_s=5)
    assert min(injected.values()) == 2
    assert (found["lost"], found["wrong"], found["canary"]) == (0, {}, 0)


def test_no_trick_reaches_this_machine() -> None:
    found = address_tricks.strike(count=10 * len(address_tricks.TRICKS), seed=1)
    assert (found.wrong, found.strayed, found.connections) == ([], [], 0)
    assert found.noticed == 3
