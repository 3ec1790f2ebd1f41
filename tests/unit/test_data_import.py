"""Pictures embedded in parquet become raw shards like those of a download."""

from pathlib import Path
from typing import Any

import pytest

from data_prep.import_pictures import ImportConfig, import_pictures
from data_prep.raw import DownloadReport, read_download_report, read_raw_shard
from infra.errors import BadInputError
from tests.unit.data_helpers import no_progress, picture, read_table, write_parquet

ROWS: list[dict[str, Any]] = [
    {"uid": f"p{i}", "image": picture(i), "caption": f"thing {i}", "concept": f"c{i}", "split": "train" if i else "test"}
    for i in range(5)
]


def run(tmp_path: Path, rows: list[dict[str, Any]], **config: Any) -> DownloadReport:
    uri = write_parquet(tmp_path / "in" / "pictures.parquet", rows)
    settings = ImportConfig(**({"samples_per_shard": 2} | config))
    return import_pictures(uri, config=settings, output_uri=str(tmp_path / "raw"), progress=no_progress)


def test_every_picture_arrives_byte_for_byte_with_its_columns(tmp_path: Path) -> None:
    report = run(tmp_path, ROWS)
    assert report == read_download_report(str(tmp_path / "raw"))
    assert [shard.samples for shard in report.shards] == [2, 2, 1]
    samples = [sample for shard in report.shards for sample in read_raw_shard(str(tmp_path / "raw"), shard)]
    assert [sample.image for sample in samples] == [row["image"] for row in ROWS]
    assert [sample.record["concept"] for sample in samples] == [row["concept"] for row in ROWS]
    assert sorted(path.name for path in (tmp_path / "raw/shards/00002").iterdir()) == [
        *("00002.parquet", "00002.tar", "00002_stats.json"),
    ]


def test_rows_can_be_chosen_by_a_column(tmp_path: Path) -> None:
    assert run(tmp_path, ROWS, only={"split": ("train",)}).requested == 4
    with pytest.raises(BadInputError, match="no rows to import"):
        run(tmp_path, ROWS, only={"split": ("none",)})


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
    outcomes = read_table(str(tmp_path / "raw/outcomes.parquet")).to_pylist()
    assert [row["state"] for row in outcomes] == ["downloaded"] * 5 + ["failed"] * 4


def test_uids_are_derived_when_there_is_no_column(tmp_path: Path) -> None:
    rows = [{"image": row["image"], "caption": row["caption"]} for row in ROWS]
    run(tmp_path, rows)
    first = read_table(str(tmp_path / "raw/outcomes.parquet"))["uid"].to_pylist()
    run(tmp_path, rows)
    assert read_table(str(tmp_path / "raw/outcomes.parquet"))["uid"].to_pylist() == first
    assert len(set(first)) == 5


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"picture": b"x", "caption": "y"}], "no column 'image'; its columns are: picture, caption"),
        ([ROWS[0], ROWS[0]], r"1 uid\(s\) are there twice: p0"),
        ([ROWS[0] | {"uid": "a.b"}], "row 0: uid 'a.b' has characters"),
        ([ROWS[0] | {"image": "text"}], "column 'image' is string, expected the bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, rows: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(BadInputError, match=problem):
        run(tmp_path, rows)
    assert not (tmp_path / "raw/download.json").exists()


def test_several_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    uris = [write_parquet(tmp_path / f"{name}.parquet", [ROWS[place]]) for name, place in (("b", 0), ("a", 1))]
    import_pictures(uris, config=ImportConfig(), output_uri=str(tmp_path / "raw"), progress=no_progress)
    assert read_table(str(tmp_path / "raw/outcomes.parquet"))["uid"].to_pylist() == ["p0", "p1"]
