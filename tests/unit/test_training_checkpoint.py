"""Checkpoints: whole or refused."""

import json
from pathlib import Path

import pytest
import torch

from infra.errors import BadInputError, CorruptArtefactError, HyperClipError
from training.checkpoint import (
    TrainState,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    remove_old,
    save_checkpoint,
    step_of,
)
from training.engine import FullState


def full(value: float) -> FullState:
    return FullState(
        parameters={"w": torch.full((3,), value)}, moments={"exp_avg.w": torch.zeros(3)}, buffers={"n": torch.tensor(1)}
    )


def save(folder: Path, step: int) -> str:
    return save_checkpoint(str(folder), TrainState(step=step, seed=0, config_hash="a"), full(float(step))).uri


def test_round_trip(tmp_path: Path) -> None:
    state, loaded = load_checkpoint(save(tmp_path, 7))
    assert state.step == 7
    assert torch.equal(loaded.parameters["w"], torch.full((3,), 7.0))


@pytest.mark.parametrize("name", ["parameters.safetensors", "moments.safetensors", "buffers.safetensors", "state.json"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    file = Path(save(tmp_path, 2)) / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptArtefactError, match=name):
        load_checkpoint(str(file.parent))
    newest = load_newest(str(tmp_path), config_hash="a")
    assert newest is not None and newest[0].step == 1


def test_an_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    (Path(save(tmp_path, 1)) / "checkpoint.json").unlink()
    assert load_newest(str(tmp_path), config_hash="a") is None


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(HyperClipError, match="another training configuration"):
        load_newest(str(tmp_path), config_hash="b")


def test_a_newer_schema_stops_the_resume_instead_of_falling_back(tmp_path: Path) -> None:
    save(tmp_path, 1)
    marker = Path(save(tmp_path, 2)) / "checkpoint.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"schema_version": 2}))
    with pytest.raises(BadInputError, match=r"step-00000002/checkpoint\.json has schema_version 2"):
        load_newest(str(tmp_path), config_hash="a")
    remove_old(str(tmp_path), keep=1)
    assert len(list_checkpoints(str(tmp_path))) == 1, "the newer one stays"


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(HyperClipError, match="parameter w is not finite at step 3"):
        save_checkpoint(str(tmp_path), TrainState(step=3, seed=0, config_hash="a"), full(float("nan")))
    assert list_checkpoints(str(tmp_path)) == []


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    remove_old(str(tmp_path), keep=2)
    assert steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("damage", ["checkpoint.json", "parameters.safetensors"])
def test_torn_checkpoints_do_not_push_out_the_last_good_one(tmp_path: Path, damage: str) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    for step in (3, 4):
        (tmp_path / f"step-0000000{step}" / damage).unlink()
    remove_old(str(tmp_path), keep=1)
    assert steps(tmp_path) == [2, 3, 4]
    assert load_newest(str(tmp_path), config_hash="a") is not None


def test_a_checkpoint_in_use_stays(tmp_path: Path) -> None:
    uris = [save(tmp_path, step) for step in (1, 2, 3)]
    remove_old(str(tmp_path), keep=1, spare=[uris[0]])
    assert steps(tmp_path) == [1, 3]


def test_an_object_store_holds_checkpoints_too() -> None:
    folder = "memory://checkpoints-test"
    for step in (1, 2, 3):
        save_checkpoint(folder, TrainState(step=step, seed=0, config_hash="a"), full(float(step)))
    remove_old(folder, keep=2)
    assert [step_of(uri) for uri in list_checkpoints(folder)] == [2, 3]
    newest = load_newest(folder, config_hash="a")
    assert newest is not None and torch.equal(newest[1].parameters["w"], torch.full((3,), 3.0))


def steps(folder: Path) -> list[int]:
    return [step_of(uri) for uri in list_checkpoints(str(folder))]
