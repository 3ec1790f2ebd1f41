"""The URL list is checked as a whole before anything is fetched."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep.url_plan
from data_prep.url_list import UrlListConfig, derive_uid, parquet_files
from data_prep.url_plan import Plan, plan_url_list, read_partition
from infra import storage
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


@pytest.mark.parametrize("inside", [None, "deeper/1.parquet", "notes.txt"])
def test_a_folder_without_lists_says_what_was_looked_for(tmp_path: Path, inside: str | None) -> None:
    folder = tmp_path / "list"
    folder.mkdir()
    if inside is not None:
        write_parquet(folder / inside, [ROW])
    with pytest.raises(
        BadInputError, match=r"list holds no file that can be a list \(\.parquet, \.csv, .* folders in it are not"
    ):
        planned(folder, tmp_path / "raw")
    with pytest.raises(BadInputError, match=r"list holds no \.parquet file; folders in it"):
        parquet_files(str(folder))


def test_a_hash_in_one_file_of_a_folder_counts_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "list" / "1.parquet", [ROW])
    write_parquet(tmp_path / "list" / "2.parquet", [ROW | {"uid": "b", "sha256": "ab" * 32}])
    assert [row["sha256"] for row in planned(tmp_path / "list", tmp_path / "raw")] == [None, "ab" * 32]


def test_uids_in_some_files_only_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "list" / "1.parquet", [ROW])
    write_parquet(tmp_path / "list" / "2.parquet", [{"url": ROW["url"], "caption": "x"}])
    with pytest.raises(BadInputError, match=r"2.parquet has no column 'uid', and other files of .* have"):
        planned(tmp_path / "list", tmp_path / "raw")


def test_a_column_of_json_lines_that_comes_late_is_refused_by_name(tmp_path: Path) -> None:
    """Else its values would be passed over: here, hashes that nobody checks."""
    lines = [{"url": f"https://example.org/{i}.jpg", "caption": "x"} for i in range(1001)]
    lines[-1]["sha256"] = "ab" * 32
    (tmp_path / "late.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadInputError, match="'sha256' is in none of the first 1,000 lines, and in later ones"):
        planned(tmp_path / "late.jsonl", tmp_path / "raw")


@pytest.mark.parametrize("column", ["url", "caption"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, column: str) -> None:
    table = pa.table({name: pa.array([text.encode()]) for name, text in ROW.items()} | {column: pa.array([b"\xff\xfe"])})
    arrays = [pa.StringArray.from_buffers(1, *array.chunk(0).buffers()[1:]) for array in table.columns]
    pq.write_table(pa.table(arrays, names=table.column_names), tmp_path / "urls.parquet")
    with pytest.raises(BadInputError, match=f"column '{column}' is string, expected string: .*UTF8"):
        planned(tmp_path / "urls.parquet", tmp_path / "raw")


# ---- formats and layouts ---------------------------------------------------------------------------------------------

CSV = 'uid,url,caption\na,https://example.org/a.jpg,"a cat, asleep"\nb,https://example.org/b.jpg,\n'
TSV = "uid\turl\tcaption\na\thttps://example.org/a.jpg\ta cat, asleep\nb\thttps://example.org/b.jpg\t\n"
JSON = (
    '{"uid": "a", "url": "https://example.org/a.jpg", "caption": "a cat, asleep", "more": [1, {"x": 2}]}\n'
    '{"uid": "b", "url": "https://example.org/b.jpg", "caption": null}\n'
)
EXPECTED = [("a", "https://example.org/a.jpg", "a cat, asleep"), ("b", "https://example.org/b.jpg", "")]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "text"), [("l.csv", CSV), ("l.tsv", TSV), ("l.jsonl", JSON), ("l.ndjson", JSON), ("l.json", JSON)]
)
def test_texts_are_lists_too_as_they_are_and_zipped(tmp_path: Path, name: str, text: str, zipped: bool) -> None:
    path = tmp_path / (name + ".gz" if zipped else name)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert [(row["uid"], row["url"], row["caption"]) for row in planned(path, tmp_path / "raw")] == EXPECTED


def test_a_list_is_read_from_any_store(tmp_path: Path) -> None:
    storage.write_atomic(f"memory://{tmp_path.name}/list/1.csv", CSV)
    storage.write_atomic(f"memory://{tmp_path.name}/list/2.jsonl", JSON.replace('"uid": "', '"uid": "2'))
    rows = planned(f"memory://{tmp_path.name}/list", tmp_path / "raw")
    assert [row["uid"] for row in rows] == ["a", "b", "2a", "2b"]


@pytest.mark.parametrize(
    ("preset", "name", "text"),
    [
        ("cc12m", "cc12m.tsv", 'https://example.org/a.jpg\t"a cat\nhttps://example.org/b.jpg\ta dog\n'),
        ("cc3m", "cc3m.tsv", '"a cat\thttps://example.org/a.jpg\na dog\thttps://example.org/b.jpg\n'),
        (
            "laion",
            "laion.csv",
            'SAMPLE_ID,URL,TEXT\n1,https://example.org/a.jpg,"""a cat"\n2,https://example.org/b.jpg,a dog\n',
        ),
        (
            "datacomp",
            "datacomp.csv",
            'uid,url,text,sha256\n1,https://example.org/a.jpg,"""a cat",\n2,https://example.org/b.jpg,a dog,\n',
        ),
    ],
)
def test_the_layouts_of_well_known_lists_have_a_name(tmp_path: Path, preset: str, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    rows = planned(tmp_path / name, tmp_path / "raw", preset=preset)
    assert [row["url"] for row in rows] == ["https://example.org/a.jpg", "https://example.org/b.jpg"]
    assert [row["caption"] for row in rows] == ['"a cat', "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.csv", "", "is not a readable csv file"),
        ("l.csv", "url,caption\nhttps://a.org/1\n", "is not a readable csv file: CSV parse error"),
        ("l.jsonl", '{"url": ', "is not a readable json file: line 1 is no JSON"),
        ("l.jsonl", '{"url": "https://a.org/1", "caption": "x"}\n\n{"url": x}\n', "line 3 is no JSON"),
        ("l.json", '[{"url": "https://a.org/1", "caption": "x"}]', "line 1 holds list, not an object"),
        ("l.txt", "https://a.org/1\n", r"not a readable parquet file: .*; its name ends in none of \.parquet, \.csv"),
        ("l.jsonl", '{"url": "https://a.org/1", "caption": "x"}\n{"url": 7}\n', "is not a readable json file"),
        ("l.csv.gz", "url,caption\n", "is not a readable gzipped csv file"),
    ],
)
def test_a_text_that_is_no_list_is_refused_by_name(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInputError, match=says):
        planned(tmp_path / name, tmp_path / "raw")


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_rows_that_repeat_another_are_told_apart_and_the_first_stays(tmp_path: Path) -> None:
    pairs = [("https://example.org/a.jpg", text) for text in ("x", "y", "x", "z", "x", "y")]
    rows = planned(
        write_parquet(tmp_path / "urls.parquet", [{"url": url, "caption": text} for url, text in pairs]),
        tmp_path / "raw",
        size=2,
    )
    assert [row["first"] for row in rows] == [None, None, 0, None, 0, 1]
    assert len({row["uid"] for row in rows}) == 6
    assert rows[4]["uid"] == derive_uid(*pairs[0]) + "-row4"


def test_many_rows_are_checked_and_cut_as_few_are(tmp_path: Path) -> None:
    """More than a batch, more than a bucket; with repetitions far from each other."""
    rows = [{"url": f"https://example.org/{i % 69_990}.jpg", "caption": "x"} for i in range(70_000)]
    uri = write_parquet(tmp_path / "urls.parquet", rows)
    found = plan(uri, tmp_path / "raw", size=20_000)
    assert [partition.num_rows for partition in found.partitions("x")] == [20_000, 20_000, 20_000, 10_000]
    assert found.repeated == {"00003": 10}
    last = read_partition(list(found.partitions(str(tmp_path / "raw")))[3]).to_pylist()
    assert [row["first"] for row in last[-11:]] == [None, *range(10)]
    pq.write_table(
        pa.table(
            {"uid": [str(i % 69_990) for i in range(70_000)]} | {"url": ["https://a.org"] * 70_000, "caption": ["x"] * 70_000}
        ),
        uri,
    )
    with pytest.raises(BadInputError, match=r"10 uid\(s\) are there twice: '0' in rows 0, 69990; '1' in rows 1, 69991"):
        plan(uri, tmp_path / "other", size=20_000)


def test_a_plan_is_made_once_and_the_same_list_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write_parquet(tmp_path / "urls.parquet", [ROW | {"uid": str(i)} for i in range(10)])
    first = plan(uri, tmp_path / "raw", size=3)
    assert plan(uri, tmp_path / "other", size=3).rows_hashes == first.rows_hashes
    os.utime(uri, (1, 1))  # touched: read again, and found to be what it was
    again = plan(uri, tmp_path / "raw", size=3)
    assert (again.rows_hashes, again.inputs == first.inputs) == (first.rows_hashes, False)
    monkeypatch.setattr(data_prep.url_plan, "read_rows", None)
    assert plan(uri, tmp_path / "raw", size=3) == again


def test_a_folder_keeps_to_its_list(tmp_path: Path) -> None:
    uri = write_parquet(tmp_path / "urls.parquet", [ROW | {"uid": str(i)} for i in range(10)])
    before = planned(uri, tmp_path / "raw", size=3)
    for rows in (9, 11):
        write_parquet(Path(uri), [ROW | {"uid": str(i)} for i in range(rows)])
        with pytest.raises(BadInputError, match="another URL list"):
            plan(uri, tmp_path / "raw", size=3)
    write_parquet(Path(uri), [ROW | {"uid": str(i)} for i in range(10)])
    with pytest.raises(BadInputError, match="another partition size"):
        plan(uri, tmp_path / "raw", size=4)
    assert planned(uri, tmp_path / "raw", size=3) == before
