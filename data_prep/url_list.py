"""The URL list: a parquet file of picture addresses and captions, read and checked once, before anything is fetched.

What breaks the list as a whole (no such column, a uid twice, an empty URL) refuses it.  A row whose URL has a bad form does
not: it counts as failed with reason `bad_url`, as any other link that cannot be fetched.
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.fetch_policy import url_problem
from infra import storage
from infra.config import StrictModel
from infra.errors import BadInputError

logger = logging.getLogger(__name__)

OPTIONAL_COLUMNS = ("uid", "captions", "sha256", "concept", "group", "source", "licence")
URL_LIST_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("sha256", pa.string()),
        ("concept", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("url_problem", pa.string()),
    ]
)
MAX_NAMED_ROWS = 10

_SAFE_UID = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")  # a dot would end the key inside a tar
_MAX_UID_CHARACTERS = 88  # a tar header holds names of 100, suffix included
_SHA256 = re.compile(r"[0-9a-f]{64}")


class UrlListConfig(StrictModel):
    """Which column of the parquet file holds what.

    Only `url` and `caption` must be there.  The others may be absent, unless a configuration names them.
    """

    url: str = "url"
    caption: str = "caption"
    uid: str = "uid"
    """Unique per row; derived from URL and caption when the column is absent."""
    captions: str = "captions"
    """A list of further captions of the same picture."""
    sha256: str = "sha256"
    """Hex SHA-256 of the picture's bytes; where given, a download that differs is refused."""
    concept: str = "concept"
    group: str = "group"
    source: str = "source"
    licence: str = "licence"


@dataclass(frozen=True)
class UrlList:
    """A checked URL list."""

    table: pa.Table
    """Of `URL_LIST_SCHEMA`; `row` is the place in the list, `url_problem` is null where the URL can be tried."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def num_bad_urls(self) -> int:
        return int(len(self) - self.table["url_problem"].null_count)


def read_url_list(uri: str, config: UrlListConfig) -> UrlList:
    """Read and check a URL list: one parquet file, or a folder of them in order of name.

    Raises:
        BadInputError: nothing there, no parquet, a missing or wrongly typed column, an empty list, an empty URL, a uid that is
            there twice or cannot name a file, a malformed hash.  Rows are named, counted from 0.
    """
    table = _read_columns(uri, config)
    if not table.num_rows:
        raise BadInputError(f"{uri} has no rows")
    columns = {name: table[name].to_pylist() for name in table.column_names}
    urls, captions = columns["url"], [caption or "" for caption in columns["caption"]]
    _refuse_rows(uri, "an empty URL", [row for row, url in enumerate(urls) if not (url and url.strip())])
    uids = columns.get("uid") or [derive_uid(url, caption) for url, caption in zip(urls, captions, strict=True)]
    _check_uids(uri, uids, derived="uid" not in columns)
    hashes = [value.strip().lower() or None if value else None for value in columns.get("sha256") or [None] * len(urls)]
    _refuse_rows(
        uri, "a malformed sha256 (64 hex digits)", [row for row, h in enumerate(hashes) if h and not _SHA256.fullmatch(h)]
    )
    problems = [url_problem(url) for url in urls]
    _warn_about_bad_urls(uri, urls, problems)
    empty: list[Any] = [None] * len(urls)
    checked = {
        "row": list(range(len(urls))),
        "uid": uids,
        "url": urls,
        "caption": captions,
        "captions": columns.get("captions", empty),
        "sha256": hashes,
        **{name: columns.get(name, empty) for name in ("concept", "group", "source", "licence")},
        "url_problem": problems,
    }
    return UrlList(pa.table(checked, schema=URL_LIST_SCHEMA))


def check_columns(uri: str, config: UrlListConfig) -> None:
    """Refuse a list whose columns cannot be used, by their names and types alone: no row is read.

    Raises:
        BadInputError: as `read_url_list`, for what the footers of the files tell.
    """
    wanted, required = _columns(config)
    for file_uri in parquet_files(uri):
        with storage.open_read(file_uri) as file:
            try:
                schema = pq.read_schema(file)
            except (pa.ArrowException, OSError) as error:
                raise BadInputError(f"{file_uri} is not a readable parquet file: {error}") from error
        names = _names_there(schema, wanted, required=required, uri=file_uri)
        rows = schema.empty_table()
        cast_text(pa.table({ours: rows[theirs] for ours, theirs in names.items()}), file_uri)


def derive_uid(url: str, caption: str) -> str:
    """The uid of a row that has none: 128 bits of the SHA-256 of its URL and caption."""
    return hashlib.sha256(f"{url}\n{caption}".encode()).hexdigest()[:32]


def parquet_files(uri: str) -> list[str]:
    """The file itself, or the parquet files of a folder.

    Raises:
        BadInputError: nothing is there.
    """
    if not storage.exists(uri):
        raise BadInputError(f"{uri} does not exist")
    files = storage.list_files(uri, suffix=".parquet")
    if not files and storage.list_files(uri):
        raise BadInputError(f"folder {uri} holds no .parquet file")
    return files or [uri]


def read_parquet_columns(uri: str, wanted: dict[str, str], *, required: set[str]) -> pa.Table:
    """Read the columns `wanted` (our name -> its name) of one parquet file under our names.

    Raises:
        BadInputError: no parquet, or a required column is missing; the columns that are there are named.
    """
    with storage.open_read(uri) as file:
        try:
            names = _names_there(pq.read_schema(file), wanted, required=required, uri=uri)
            file.seek(0)
            table = pq.read_table(file, columns=list(dict.fromkeys(names.values())))
        except (pa.ArrowException, OSError) as error:
            raise BadInputError(f"{uri} is not a readable parquet file: {error}") from error
    return pa.table({ours: table[theirs] for ours, theirs in names.items()})


def _names_there(schema: pa.Schema, wanted: dict[str, str], *, required: set[str], uri: str) -> dict[str, str]:
    """Those of `wanted` that are there.  Raises BadInputError when a required one is not."""
    missing = [theirs for ours, theirs in wanted.items() if ours in required and theirs not in schema.names]
    if missing:
        raise BadInputError(
            f"{uri} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(schema.names) or 'none'}"
        )
    return {ours: theirs for ours, theirs in wanted.items() if theirs in schema.names}


def check_uid(uid: str | None) -> str | None:
    """What is wrong with a uid, or None."""
    if not uid:
        return "is empty"
    if len(uid) > _MAX_UID_CHARACTERS:
        return f"is longer than {_MAX_UID_CHARACTERS} characters"
    return None if _SAFE_UID.fullmatch(uid) else "has characters other than letters, digits, '_', '-' and inner '/'"


def _columns(config: UrlListConfig) -> tuple[dict[str, str], set[str]]:
    """Our name -> the list's name, and which of them must be there."""
    wanted: dict[str, str] = {"url": config.url, "caption": config.caption}
    wanted |= {name: getattr(config, name) for name in OPTIONAL_COLUMNS}
    # a name someone wrote down must be there; a default that is absent only means that the list has no such column
    return wanted, {"url", "caption"} | {name for name in config.model_fields_set if getattr(config, name) != name}


def _read_columns(uri: str, config: UrlListConfig) -> pa.Table:
    wanted, required = _columns(config)
    tables = [read_parquet_columns(file, wanted, required=required) for file in parquet_files(uri)]
    common = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    return pa.concat_tables([cast_text(table.select(common), uri) for table in tables])


def cast_text(table: pa.Table, uri: str) -> pa.Table:
    """The table with its text columns as plain strings (numbers become text, dictionaries are decoded).

    Raises:
        BadInputError: a column cannot be text.
    """
    fields = [URL_LIST_SCHEMA.field(name) for name in table.column_names]
    arrays = []
    for field in fields:
        found = table[field.name].type
        numeric = pa.types.is_integer(found) and field.name in ("uid", "concept", "group", "source", "licence")
        decoded = found.value_type if pa.types.is_dictionary(found) else found
        text = pa.types.is_string(decoded) or pa.types.is_large_string(decoded) or pa.types.is_null(decoded) or numeric
        try:
            if not text and field.name != "captions":
                raise pa.ArrowInvalid(f"cannot read {found} as text")
            arrays.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            raise BadInputError(f"{uri}: column {field.name!r} is {found}, expected {field.type}: {error}") from error
    return pa.table(arrays, schema=pa.schema(fields))


def _check_uids(uri: str, uids: list[str | None], *, derived: bool) -> None:
    bad = [(row, uid, check_uid(uid)) for row, uid in enumerate(uids) if check_uid(uid)]
    if bad:
        named = "; ".join(f"row {row}: {uid!r} {problem}" for row, uid, problem in bad[:MAX_NAMED_ROWS])
        raise BadInputError(f"{uri}: {len(bad):,} uid(s) cannot be used: {named}{_more(len(bad))}")
    if len(set(uids)) == len(uids):
        return
    counts = pc.value_counts(pa.array(uids, pa.string()))
    doubled = {entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1}
    places: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        if uid in doubled:
            places.setdefault(str(uid), []).append(row)
    named = "; ".join(f"{uid!r} in rows {', '.join(map(str, rows[:5]))}" for uid, rows in list(places.items())[:MAX_NAMED_ROWS])
    what = (
        "rows repeat the URL and caption of another (and the list has no uid column)" if derived else "uid(s) are there twice"
    )
    raise BadInputError(f"{uri}: {len(places):,} {what}: {named}{_more(len(places))}. Remove the repetitions")


def _refuse_rows(uri: str, what: str, rows: list[int]) -> None:
    if rows:
        named = ", ".join(map(str, rows[:MAX_NAMED_ROWS]))
        raise BadInputError(f"{uri}: {len(rows):,} row(s) have {what}: row {named}{_more(len(rows))} (counted from 0)")


def _warn_about_bad_urls(uri: str, urls: list[str], problems: list[str | None]) -> None:
    bad = [(row, urls[row], problem) for row, problem in enumerate(problems) if problem]
    if bad:
        named = "; ".join(f"row {row}: {url[:80]!r} {problem}" for row, url, problem in bad[:MAX_NAMED_ROWS])
        logger.warning(
            "%s: %d URL(s) cannot be fetched and count as failed (bad_url): %s%s", uri, len(bad), named, _more(len(bad))
        )


def _more(count: int) -> str:
    return f", and {count - MAX_NAMED_ROWS:,} more" if count > MAX_NAMED_ROWS else ""
