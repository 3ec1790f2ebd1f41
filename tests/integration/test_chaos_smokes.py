"""Two chaos runs, small: `make chaos` runs them in full."""

import logging
from pathlib import Path

import pytest

from tests.chaos import damaged_checkpoints, train_kill

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
