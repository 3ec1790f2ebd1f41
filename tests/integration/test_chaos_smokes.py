"""Chaos runs, small: `make chaos` runs them in full."""

import importlib
import logging
import sys
from pathlib import Path

import pytest

from infra.cluster import ClusterConfig, connected
from tests.chaos import (
    _damaged_tars,
    address_tricks,
    damaged_checkpoints,
    damaged_shards,
    download_kill,
    origin_faults,
    poisoned_rows,
    train_kill,
)
from tests.chaos._hostile_pictures import KINDS

pytestmark = pytest.mark.integration
COMMANDS = sorted(path.stem for path in Path(train_kill.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_count_is_refused_before_anything_is_done(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--count", "none"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tests.chaos.{name}").main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "--count" in said.err


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


def test_poisoned_rows_are_excluded_and_reported_and_no_others(tmp_path: Path) -> None:
    found = poisoned_rows.strike(tmp_path, poisoned=2, seed=1)
    assert (found["excluded"], found["reported"], found["counted"]) == (2, 2, 2)
    assert (found["stored_although_poisoned"], found["others_excluded"]) == (0, 0)


def test_a_download_whose_worker_and_driver_were_killed_ends_like_a_calm_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = download_kill.Size(rows=80, rows_in_partition=10, workers=1, drivers=1)
    with download_kill.origin(latency_s=0.02) as web:
        status = download_kill.run(tmp_path, web, size, 1)
    assert status == 0, capsys.readouterr()


def test_damaged_shards_and_hostile_pictures_are_caught() -> None:
    count = len(_damaged_tars.CHANGED) + len(_damaged_tars.made("/canary"))
    with connected(ClusterConfig(num_cpus=2)):
        struck = damaged_shards.strike(count=count, seed=1)
    assert struck.kinds.total() == count + len(KINDS)
    assert (struck.problems, struck.lost) == ([], 0)
