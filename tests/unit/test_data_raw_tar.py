"""Looking at a raw shard that was damaged, or made to mislead: it is refused, and nothing of it is written down."""

import hashlib
import random
from pathlib import Path

import pytest

from data_prep.curation.curate import CurateConfig
from data_prep.curation.looks import look_at_shard, looks_uri
from data_prep.raw import RawShard
from data_prep.raw_tar import scan_tar
from infra import storage
from tests.chaos import _damaged_tars as tars

LOOKS = CurateConfig().looks
MADE = tars.made("/nowhere/canary")


def write(folder: Path, data: bytes | None, reported: bytes) -> RawShard:
    if data is not None:
        (folder / "00000.tar").write_bytes(data)
    return RawShard(path="00000.tar", samples=3, bytes=len(reported), sha256=hashlib.sha256(reported).hexdigest())


def test_a_whole_shard_is_looked_at(tmp_path: Path) -> None:
    data = tars.plain(tars.samples(0, 3, "shard"))
    looked = look_at_shard(str(tmp_path), 0, write(tmp_path, data, data), LOOKS, str(tmp_path / "out"))
    assert (looked.samples, looked.damage) == (3, None)
    assert storage.exists(looks_uri(str(tmp_path / "out"), 0))


@pytest.mark.parametrize("name", MADE)
def test_a_shard_that_was_made_to_mislead_is_refused(tmp_path: Path, name: str) -> None:
    data = MADE[name](tars.samples(0, 3, "shard"), random.Random(0))
    assert data is not None
    looked = look_at_shard(str(tmp_path), 0, write(tmp_path, data, data), LOOKS, str(tmp_path / "out"))
    assert looked.damage is not None
    assert "00000.tar" in looked.damage
    assert not storage.exists(looks_uri(str(tmp_path / "out"), 0))


@pytest.mark.parametrize("damage", tars.CHANGED)
def test_a_shard_that_was_changed_is_refused(tmp_path: Path, damage: tars.Damage) -> None:
    found = tars.samples(0, 3, "shard")
    shard = write(tmp_path, damage(found, random.Random(0)), tars.plain(found))
    assert look_at_shard(str(tmp_path), 0, shard, LOOKS, str(tmp_path / "out")).damage


def test_members_that_are_no_picture_and_no_json_are_passed_over(tmp_path: Path) -> None:
    """img2dataset writes the caption as a text beside them."""
    (sample,) = tars.samples(0, 1, "shard")
    (tmp_path / "00000.tar").write_bytes(tars.write_tar([*sample.members(), tars.Member("00000.txt", b"thing 0")]))
    assert [found.image for found in scan_tar(str(tmp_path / "00000.tar"))] == [sample.image]
