"""Checkpoints: whole or refused."""

from pathlib import Path

import pytest
import torch

from infra.errors import CorruptArtefactError, HyperClipError
from training.checkpoint import TrainState, list_checkpoints, load_checkpoint, load_newest, remove_old, save_checkpoint
from training.engine import FullState


def full(value: float) -> FullState:
    return FullState(
        parameters={"w": torch.full((3,), value)}, moments={"exp_avg.w": torch.zeros(3)}, buffers={"n": torch.tensor(1)}
    )


def save(folder: Path, step: int) -> str:
    return save_checkpoint(str(folder), TrainState(step=step, seed=0, config_hash="a"), full(float(step)))


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


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    remove_old(str(tmp_path), keep=2)
    assert [uri[-1] for uri in list_checkpoints(str(tmp_path))] == ["2", "3"]
