"""Pictures embedded in parquet become raw shards like those of a download."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep.import_pictures
from data_prep.import_pictures import import_pictures
from data_prep.picture_partition import ImportConfig
from data_prep.raw import DownloadReport, iter_outcomes, read_download_report, read_raw_shard
from infra.errors import BadInputError, DataLossError
from tests.unit.data_helpers import no_progress, picture, run_here, write_parquet

ROWS: list[dict[str, Any]] = [
    {"uid": f"p{i}", "image": picture(i), "caption": f"thing {i}", "concept": f"c{i}", "split": "train" if i else "test"}
    for i in range(5)
]


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.import_pictures, "fan_out", run_here)


def run(tmp_path: Path, rows: list[dict[str, Any]], **config: Any) -> DownloadReport:
    uri = write_parquet(tmp_path / "in" / "pictures.parquet", rows)
    return run_again(tmp_path, uri, **config)


def run_again(tmp_path: Path, uri: str, **config: Any) -> DownloadReport:
    settings = ImportConfig.model_validate({"samples_per_shard": 2} | config)
    return import_pictures(uri, config=settings, output_uri=str(tmp_path / "raw"), progress=no_progress)


def outcomes(tmp_path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [row for table in iter_outcomes(str(tmp_path / "raw")) for row in table.to_pylist()]
    return found


def in_row_groups(path: Path, rows: list[dict[str, Any]], size: int) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=size)
    return str(path)


def test_every_picture_arrives_byte_for_byte_with_its_columns(tmp_path: Path) -> None:
    report = run(tmp_path, ROWS)
    assert report == read_download_report(str(tmp_path / "raw"))
    assert [shard.samples for shard in report.shards] == [2, 2, 1]
    samples = [sample for shard in report.shards for sample in read_raw_shard(str(tmp_path / "raw"), shard)]
    assert [sample.image for sample in samples] == [row["image"] for row in ROWS]
    assert [sample.record["concept"] for sample in samples] == [row["concept"] for row in ROWS]
    names = sorted(path.name for path in (tmp_path / "raw/shards/00000").iterdir() if path.name.startswith("00002"))
    assert names == ["00002.parquet", "00002.tar", "00002_stats.json"]


def test_how_the_file_is_cut_changes_neither_rows_nor_pictures(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", ROWS)
    cut = run_again(tmp_path / "cut", in_row_groups(tmp_path / "cut.parquet", ROWS, 2), samples_per_partition=3)
    # row groups of 2, 2 and 1 rows make partitions of 2 and 3; no shard number comes twice
    assert [shard.path[7:] for shard in cut.shards] == ["00000/00000.tar", "00001/00001.tar", "00001/00002.tar"]
    kept = [[(row["row"], row["uid"], row["sha256"]) for row in outcomes(tmp_path / name)] for name in ("whole", "cut")]
    assert kept[0] == kept[1]
    assert (whole.bytes, whole.downloaded) == (cut.bytes, cut.downloaded)


def test_a_second_import_does_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = in_row_groups(tmp_path / "pictures.parquet", ROWS, 2)
    first = run_again(tmp_path, uri, samples_per_partition=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw/shards").rglob("*.tar")}
    (tmp_path / "raw/partitions/00001.json").unlink()  # killed just before its report
    (tmp_path / "raw/shards/00001/00001.tar").write_bytes(b"half")
    again = run_again(tmp_path, uri, samples_per_partition=2)
    assert again.skipped_partitions == 2
    assert again.rebuilt(seconds=0, skipped_partitions=0) == first.rebuilt(seconds=0)
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"00001.tar"}


def test_a_changed_file_or_setting_is_imported_anew(tmp_path: Path) -> None:
    assert run(tmp_path, ROWS).skipped_partitions == 0
    assert run_again(tmp_path, str(tmp_path / "in/pictures.parquet"), max_bytes=1_000_000).skipped_partitions == 0
    report = run(tmp_path, [*ROWS[:4], ROWS[4] | {"image": picture(9)}])
    assert report.skipped_partitions == 0
    assert [sample.image for sample in read_raw_shard(str(tmp_path / "raw"), report.shards[2])] == [picture(9)]


def test_rows_can_be_chosen_by_a_column(tmp_path: Path) -> None:
    assert run(tmp_path, ROWS, only={"split": ["train"]}).requested == 4
    told: list[tuple[int, int, str]] = []
    uri = str(tmp_path / "in" / "pictures.parquet")
    for only in ({"split": ("train",)}, {}):
        settings = ImportConfig(only=only)
        import_pictures(uri, config=settings, output_uri=str(tmp_path / "raw"), progress=lambda *shown: told.append(shown))
    assert told == [
        (0, 5, "rows, 0 pictures chosen"),
        (5, 5, "rows, 4 pictures chosen"),
        (0, 5, "pictures"),
        (5, 5, "pictures"),
    ]
    with pytest.raises(BadInputError, match=r"no rows to import from .* where split is none"):
        run(tmp_path, ROWS, only={"split": ["none"]})


def test_columns_are_renamed_and_pictures_may_lie_in_a_struct(tmp_path: Path) -> None:
    rows = [{"picture": {"bytes": row["image"], "path": "a.webp"}, "text": row["caption"]} for row in ROWS]
    report = run(tmp_path, rows, columns={"image": "picture", "caption": "text"})
    samples = [sample for shard in report.shards for sample in read_raw_shard(str(tmp_path / "raw"), shard)]
    assert [(sample.image, sample.record["caption"]) for sample in samples] == [(r["image"], r["caption"]) for r in ROWS]


def test_bad_pictures_fail_with_their_reason(tmp_path: Path) -> None:
    bad = [
        {"image": b"GIF89a"},
        {"image": None},
        {"image": picture(width=900, height=900)},
        {"image": picture(7) + b"\0" * 100_000},
    ]
    rows = [*ROWS, *(ROWS[0] | {"uid": f"bad{i}"} | change for i, change in enumerate(bad))]
    report = run(tmp_path, rows, max_pixels=100_000, max_bytes=100_000)
    assert report.failed == {"not_an_image": 2, "too_large": 1, "too_many_pixels": 1}
    assert [row["state"] for row in outcomes(tmp_path)] == ["downloaded"] * 5 + ["failed"] * 4


def test_files_with_hardly_a_picture_in_them_are_not_done(tmp_path: Path) -> None:
    rows = [{"uid": f"n{i}", "image": b"<html>", "caption": "a page"} for i in range(9)]
    with pytest.raises(DataLossError, match=r"only 1 of 10 pictures could be used: 10\.0%.*not_an_image 9"):
        run(tmp_path, [ROWS[0], *rows])
    assert not (tmp_path / "raw/download.json").exists()
    assert run(tmp_path, [ROWS[0], *rows], min_success_rate=0.1).downloaded == 1


def test_uids_are_derived_when_there_is_no_column(tmp_path: Path) -> None:
    rows = [{"image": row["image"], "caption": row["caption"]} for row in ROWS]
    run(tmp_path, rows)
    first = [row["uid"] for row in outcomes(tmp_path)]
    run(tmp_path, rows)
    assert [row["uid"] for row in outcomes(tmp_path)] == first
    assert len(set(first)) == 5


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"picture": b"x", "caption": "y"}], "no column 'image'; its columns are: picture, caption"),
        ([ROWS[0], ROWS[1], ROWS[0]], r"1 uid\(s\) are there twice: 'p0' in rows 0, 2"),
        ([ROWS[0] | {"uid": "a.b"}], "row 0 of all: uid 'a.b' has characters"),
        ([ROWS[0] | {"image": "text"}], "column 'image' is string, expected the bytes"),
        ([ROWS[0] | {"caption": 1.5}], "column 'caption' is double, expected string"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, rows: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(BadInputError, match=problem):
        run(tmp_path, rows)
    assert not (tmp_path / "raw/download.json").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    uri = write_parquet(tmp_path / "pictures.parquet", ROWS)
    data = bytearray(Path(uri).read_bytes())
    data[4:200] = b"\xff" * 196  # the first page; the footer still tells of rows
    Path(uri).write_bytes(data)
    with pytest.raises(BadInputError, match=r"pictures\.parquet"):
        run_again(tmp_path, uri)


def test_several_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    uris = [write_parquet(tmp_path / f"{name}.parquet", [ROWS[place]]) for name, place in (("b", 0), ("a", 1))]
    import_pictures(uris, config=ImportConfig(), output_uri=str(tmp_path / "raw"), progress=no_progress)
    assert [row["uid"] for row in outcomes(tmp_path)] == ["p0", "p1"]
