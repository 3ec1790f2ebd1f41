"""The URL list is checked as a whole before anything is fetched."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.url_list import UrlListConfig, derive_uid, read_url_list
from infra.errors import BadInputError
from tests.unit.data_helpers import write_parquet

ROW = {"uid": "a", "url": "https://example.org/a.jpg", "caption": "a cat"}


def read(tmp_path: Path, rows: list[dict[str, Any]], **columns: str) -> Any:
    return read_url_list(write_parquet(tmp_path / "urls.parquet", rows), UrlListConfig(**columns))


def test_reads_every_column_under_the_projects_names(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "address": ROW["url"],
        "text": "a cat",
        "captions": ["eine Katze"],
        "sha256": "AB" * 32,
        "licence": "CC0-1.0",
    }
    (found,) = read(tmp_path, [row], uid="id", url="address", caption="text").table.to_pylist()
    given = {"uid": "7", "url": ROW["url"], "caption": "a cat", "captions": ["eine Katze"], "sha256": "ab" * 32}
    absent = {"concept": None, "group": None, "source": None, "url_problem": None}
    assert found == {"row": 0, "licence": "CC0-1.0"} | given | absent


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no column 'url'; its columns are: link, caption"):
        read(tmp_path, [{"link": ROW["url"], "caption": "x"}])


def test_an_optional_column_may_be_absent_unless_it_was_configured(tmp_path: Path) -> None:
    assert read(tmp_path, [ROW]).table["concept"].to_pylist() == [None]
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
    assert read(tmp_path, [row]).table["uid"].to_pylist() == [derive_uid(ROW["url"], "a cat")]
    with pytest.raises(BadInputError, match="repeat the URL and caption"):
        read(tmp_path, [row, row])


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.org/a.jpg", "file:///etc/passwd", "data:image/png;base64,AA", "http://", "http:///a.jpg", "a.jpg"),
        *("http://user:secret@example.org/", "http://example.org:99999/", "http://exa mple.org/", "http://[::1/", "x" * 5000),
    ],
)
def test_a_url_of_bad_form_is_counted_and_reported_but_not_fatal(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = read(tmp_path, [ROW, ROW | {"uid": "b", "url": url}])
    assert found.num_bad_urls == 1
    assert [bool(problem) for problem in found.table["url_problem"].to_pylist()] == [False, True]
    assert "row 1" in caplog.text


def test_a_malformed_hash_is_refused_by_row(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"malformed sha256 .* row 1 "):
        read(tmp_path, [ROW | {"sha256": None}, ROW | {"uid": "b", "sha256": "abc"}])


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "urls.parquet").write_bytes(b"uid,url,caption\n")
    with pytest.raises(BadInputError, match="not a readable parquet file"):
        read_url_list(str(tmp_path / "urls.parquet"), UrlListConfig())


def test_a_truncated_parquet_is_refused(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "urls.parquet", [ROW | {"uid": str(i)} for i in range(100)]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInputError, match="not a readable parquet file"):
        read_url_list(str(path), UrlListConfig())


def test_nothing_there_and_nothing_in_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        read_url_list(str(tmp_path / "absent.parquet"), UrlListConfig())
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(BadInputError, match="has no rows"):
        read_url_list(str(tmp_path / "empty.parquet"), UrlListConfig())


def test_a_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="column 'caption' is list"):
        read(tmp_path, [ROW | {"caption": ["a", "b"]}])


def test_a_folder_is_read_in_order_of_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "list" / "2.parquet", [ROW | {"uid": "b"}])
    write_parquet(tmp_path / "list" / "1.parquet", [ROW])
    table = read_url_list(str(tmp_path / "list"), UrlListConfig()).table
    assert (table["uid"].to_pylist(), table["row"].to_pylist()) == (["a", "b"], [0, 1])
