"""A shard as it is written: the same bytes in whatever order pictures come, and what is told of it is what lies there."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from data_prep.raw_tar import scan_tar
from data_prep.sorted_shards import SortedShardWriter, WrittenShard
from infra.images import ImageError
from tests.unit.data_helpers import picture, sha256

NAMES = [("row", pa.int64()), *((name, pa.string()) for name in ("uid", "url", "caption", "status", "error_message", "key"))]
PICTURES = {number: picture(number, width=40 + number, image_format="JPEG") for number in range(5)}


def meta(number: int, **more: Any) -> dict[str, Any]:
    row = {"row": number, "uid": f"u{number}", "url": f"http://x.invalid/{number}", "caption": f"Größe {number}"}
    return row | {"status": "success", "error_message": None, "key": key(number)} | more


def key(number: int) -> str:
    return f"00007{number:04d}"


def writer_in(folder: Path, written: list[WrittenShard], **options: Any) -> SortedShardWriter:
    folder.mkdir(exist_ok=True)
    return SortedShardWriter(
        7, str(folder), True, 5, pa.schema(NAMES), "jpg", **{"max_pixels": 10**6} | options, written=written
    )


def write(folder: Path, order: list[int]) -> WrittenShard:
    written: list[WrittenShard] = []
    writer = writer_in(folder, written)
    for number in order:
        writer.write(PICTURES[number], key(number), meta(number)["caption"], meta(number))
    writer.write(None, key(9), None, meta(9, status="failed_to_download", error_message="[timeout] slow"))
    writer.close()
    return written[0]


def test_the_order_of_arrival_leaves_no_trace(tmp_path: Path) -> None:
    write(tmp_path / "a", [0, 1, 2, 3, 4])
    write(tmp_path / "b", [3, 1, 4, 0, 2])
    for name in ("00007.tar", "00007.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert pq.read_table(tmp_path / "b/00007.parquet")["row"].to_pylist() == [0, 1, 2, 3, 4, 9]


def test_what_is_told_of_a_shard_is_what_lies_there(tmp_path: Path) -> None:
    shard = write(tmp_path, [2, 0, 1])
    tar = (tmp_path / shard.name).read_bytes()
    assert (shard.bytes, shard.sha256) == (len(tar), sha256(tar))
    told = {row.picture.key: row.picture for row in shard.rows if row.picture}
    samples = list(scan_tar(str(tmp_path / shard.name)))
    assert [sample.key for sample in samples] == sorted(told) == [key(0), key(1), key(2)]
    for number, sample in enumerate(samples):
        assert sample.image == PICTURES[number]
        found = told[sample.key]
        assert (found.sha256, found.bytes) == (sha256(sample.image), len(sample.image))
        assert (found.format, found.width, found.height) == ("jpeg", 40 + number, 48)
    assert [row.uid for row in shard.rows] == ["u2", "u0", "u1", "u9"]


def test_tarfile_and_webdataset_read_a_shard(tmp_path: Path) -> None:
    shard = write(tmp_path, [1, 0])
    with tarfile.open(tmp_path / shard.name) as tar:
        assert tar.getnames() == [f"{key(number)}.{suffix}" for number in (0, 1) for suffix in ("jpg", "json", "txt")]
        assert {member.mtime for member in tar} == {0}
    first, second = webdataset.WebDataset(str(tmp_path / shard.name), shardshuffle=False)
    assert (first["jpg"], second["txt"].decode()) == (PICTURES[0], "Größe 1")
    assert json.loads(first["json"]) == meta(0)


def test_what_is_no_picture_of_ours_is_not_noted(tmp_path: Path) -> None:
    written: list[WrittenShard] = []
    writer = writer_in(tmp_path, written, max_pixels=40 * 48)
    writer.write(PICTURES[0], key(0), "", meta(0))
    for image in (PICTURES[1], b"<html>"):  # too many pixels; no picture
        with pytest.raises(ImageError):
            writer.write(image, key(1), "", meta(1))
    writer.close()
    assert [row.uid for row in written[0].rows] == ["u0"]
    assert [sample.key for sample in scan_tar(str(tmp_path / "00007.tar"))] == [key(0)]


def test_a_damaged_scratch_copy_ends_the_shard(tmp_path: Path) -> None:
    written: list[WrittenShard] = []
    writer = writer_in(tmp_path, written)
    writer.write(PICTURES[0], key(0), "", meta(0))
    writer._scratch.seek(700)
    writer._scratch.write(b"\0\0\0\0")
    with pytest.raises(OSError, match="damaged"):
        writer.close()
    assert not written
