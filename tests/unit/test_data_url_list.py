"""The URL list is checked as a whole before anything is fetched."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.url_list import UrlListConfig, derive_uid
from data_prep.url_plan import Plan, plan_url_list, read_partition
from infra.errors import BadInputError
from tests.unit.data_helpers import write_parquet

ROW = {"uid": "a", "url": "https://example.org/a.jpg", "caption": "a cat"}


def plan(uri: object, output: Path, *, size: int = 100, **columns: Any) -> Plan:
    return plan_url_list(
        str(uri), UrlListConfig(**columns), samples_per_partition=size, samples_per_shard=size, output_uri=str(output)
    )


def planned(uri: object, output: Path, *, size: int = 100, **columns: Any) -> list[dict[str, Any]]:
    """The rows of a list as the tasks read them."""
    found = plan(uri, output, size=size, **columns)
    return [row for partition in found.partitions(str(output)) for row in read_partition(partition).to_pylist()]


def read(tmp_path: Path, rows: list[dict[str, Any]], **columns: Any) -> list[dict[str, Any]]:
    return planned(write_parquet(tmp_path / "urls.parquet", rows), tmp_path / "raw", **columns)


def test_reads_every_column_under_the_projects_names(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "address": ROW["url"],
        "text": "a cat",
        "captions": ["eine Katze"],
        "sha256": "AB" * 32,
        "licence": "CC0-1.0",
    }
    (found,) = read(tmp_path, [row], uid="id", url="address", caption="text")
    given = {"uid": "7", "url": ROW["url"], "caption": "a cat", "captions": ["eine Katze"], "sha256": "ab" * 32}
    absent = {"concept": None, "group": None, "source": None, "first": None}
    assert found == {"row": 0, "licence": "CC0-1.0"} | given | absent


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no column 'url'; its columns are: link, caption"):
        read(tmp_path, [{"link": ROW["url"], "caption": "x"}])


def test_an_optional_column_may_be_absent_unless_it_was_configured(tmp_path: Path) -> None:
    assert [row["concept"] for row in read(tmp_path, [ROW])] == [None]
    with pytest.raises(BadInputError, match="no column 'class'"):
        read(tmp_path, [ROW], concept="class")


def test_doubled_uids_are_refused_with_their_rows(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"1 uid\(s\) are there twice: 'a' in rows 0, 2"):
        read(tmp_path, [ROW, ROW | {"uid": "b"}, ROW])


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_empty_urls_are_refused_by_row_and_count(tmp_path: Path, empty: str | None) -> None:
    rows = [ROW | {"uid": str(i), "url": empty if i % 2 else ROW["url"]} for i in range(30)]
    with pytest.raises(BadInputError, match=r"15 row\(s\) have an empty URL: row 1, 3, .* and 5 more"):
        read(tmp_path, rows)


@pytest.mark.parametrize("uid", ["../a", "a.b", "/a", "a//b", "a b", "x" * 89, "", None])
def test_uids_that_cannot_name_a_file_are_refused(tmp_path: Path, uid: str | None) -> None:
    with pytest.raises(BadInputError, match=r"row 1: .* (characters|empty)"):
        read(tmp_path, [ROW, ROW | {"uid": uid}])


def test_uids_are_derived_from_url_and_caption(tmp_path: Path) -> None:
    row = {"url": ROW["url"], "caption": "a cat"}
    assert [row["uid"] for row in read(tmp_path, [row])] == [derive_uid(ROW["url"], "a cat")]


def test_a_malformed_hash_is_refused_by_row(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"malformed sha256 .* row 1 "):
        read(tmp_path, [ROW | {"sha256": None}, ROW | {"uid": "b", "sha256": "abc"}])


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "urls.parquet").write_bytes(b"uid,url,caption\n")
    with pytest.raises(BadInputError, match="not a readable parquet file"):
        planned(tmp_path / "urls.parquet", tmp_path / "raw")


def test_a_truncated_parquet_is_refused(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "urls.parquet", [ROW | {"uid": str(i)} for i in range(100)]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInputError, match="not a readable parquet file"):
        planned(path, tmp_path / "raw")


def test_nothing_there_and_nothing_in_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        planned(tmp_path / "absent.parquet", tmp_path / "raw")
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(BadInputError, match="has no rows"):
        planned(tmp_path / "empty.parquet", tmp_path / "raw")


def test_a_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="column 'caption' is list"):
        read(tmp_path, [ROW | {"caption": ["a", "b"]}])


def test_a_folder_is_read_in_order_of_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "list" / "2.parquet", [ROW | {"uid": "b"}])
    write_parquet(tmp_path / "list" / "1.parquet", [ROW])
    rows = planned(tmp_path / "list", tmp_path / "raw")
    assert [(row["uid"], row["row"]) for row in rows] == [("a", 0), ("b", 1)]
