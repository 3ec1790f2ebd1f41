"""The URL list: picture addresses and captions, in whatever columns and file format, a batch of rows at a time.

Which files, which columns, and what each column must be.  What the rows must be is checked while they are planned
(`plan.py`), and a batch is all that memory holds of a list.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
from pydantic import model_validator

from data_prep.list_files import iter_batches, list_files, read_schema
from infra import storage
from infra.config import StrictModel
from infra.errors import BadInputError

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
    ]
)
MAX_NAMED_ROWS = 10

SAFE_UID = r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*"  # a dot would end the key inside a tar
MAX_UID_CHARACTERS = 88  # a tar header holds names of 100, suffix included

Preset = Literal["datacomp", "laion", "cc12m", "cc3m"]
_PRESETS: dict[Preset, dict[str, Any]] = {
    "datacomp": {"uid": "uid", "url": "url", "caption": "text", "sha256": "sha256"},
    "laion": {"url": "URL", "caption": "TEXT"},
    # tab-separated, without a line of names: https://github.com/google-research-datasets
    "cc12m": {"header": ("url", "caption")},
    "cc3m": {"header": ("caption", "url")},
}


class UrlListConfig(StrictModel):
    """Which column of the list holds what.

    Only `url` and `caption` must be there.  The others may be absent, unless a configuration names them.
    """

    preset: Preset | None = None
    """Names as a well-known list has them: DataComp's, LAION's in capitals (its lists in small letters need none), CC12M's and
    CC3M's files without a line of names.  What is named besides goes before it."""
    header: tuple[str, ...] | None = None
    """The columns of a csv or tsv file that does not begin with a line of names."""
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

    @model_validator(mode="before")
    @classmethod
    def _filled_from_preset(cls, given: Any) -> Any:
        preset = _PRESETS.get(given["preset"]) if isinstance(given, dict) and given.get("preset") else None
        return {**preset, **given} if preset else given


def read_rows(uri: str, config: UrlListConfig) -> Iterator[pa.Table]:
    """The rows of a list under our names, a batch at a time, with those of the columns wanted that the file of each has.

    Raises:
        BadInputError: nothing there, a file of another format, a missing or wrongly typed column, uids in some files only.
    """
    files = list_files(uri)
    names = [_names_there(file, config) for file in files]
    without = [file for file, theirs in zip(files, names, strict=True) if "uid" not in theirs]
    if 0 < len(without) < len(files):
        raise BadInputError(
            f"{without[0]} has no column {config.uid!r}, and other files of {uri} have: give uids to all of them"
        )
    for file, theirs in zip(files, names, strict=True):
        columns = list(dict.fromkeys(theirs.values()))
        absent = {getattr(config, name) for name in OPTIONAL_COLUMNS} - set(columns)
        for batch in iter_batches(file, columns, header=config.header, absent=sorted(absent)):
            yield cast_text(pa.table({ours: batch[found] for ours, found in theirs.items()}), file)


def check_columns(uri: str, config: UrlListConfig) -> None:
    """Refuse a list whose columns cannot be used, by their names and types alone: no row is read.

    Raises:
        BadInputError: as `read_rows`, for what the beginnings (or footers) of the files tell.
    """
    for file in list_files(uri):
        schema = read_schema(file, header=config.header)
        rows = schema.empty_table()
        cast_text(pa.table({ours: rows[theirs] for ours, theirs in _names_there(file, config).items()}), file)


def derive_uid(url: str, caption: str) -> str:
    """The uid of a row that has none: 128 bits of the SHA-256 of its URL and caption."""
    return hashlib.sha256(f"{url}\n{caption}".encode()).hexdigest()[:32]


def check_uid(uid: str | None) -> str | None:
    """What is wrong with a uid, or None."""
    if not uid:
        return "is empty"
    if len(uid) > MAX_UID_CHARACTERS:
        return f"is longer than {MAX_UID_CHARACTERS} characters"
    return None if re.fullmatch(SAFE_UID, uid) else "has characters other than letters, digits, '_', '-' and inner '/'"


def parquet_files(uri: str) -> list[str]:
    """The file itself, or the parquet files of a folder.

    Raises:
        BadInputError: nothing is there, or a folder without such files.
    """
    if not storage.exists(uri):
        raise BadInputError(f"{uri} does not exist")
    files = storage.list_files(uri, suffix=".parquet")
    if not files and storage.is_folder(uri):
        raise BadInputError(f"folder {uri} holds no .parquet file; folders in it are not looked into")
    return files or [uri]


def _names_there(file_uri: str, config: UrlListConfig) -> dict[str, str]:
    """Our name -> its name, of the columns wanted that are there.  Raises BadInputError when a required one is not."""
    there = read_schema(file_uri, header=config.header).names
    wanted: dict[str, str] = {"url": config.url, "caption": config.caption}
    wanted |= {name: getattr(config, name) for name in OPTIONAL_COLUMNS}
    # a name someone wrote down must be there; a default that is absent only means that the list has no such column
    required = {"url", "caption"} | {name for name in wanted if getattr(config, name) != name}
    missing = [theirs for ours, theirs in wanted.items() if ours in required and theirs not in there]
    if missing:
        raise BadInputError(
            f"{file_uri} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(there) or 'none'}. "
            "Say under `columns` of the source which of them are meant"
        )
    return {ours: theirs for ours, theirs in wanted.items() if theirs in there}


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
            arrays[-1].validate(full=True)  # a parquet file may hold bytes that are no text
        except pa.ArrowException as error:
            raise BadInputError(f"{uri}: column {field.name!r} is {found}, expected {field.type}: {error}") from error
    return pa.table(arrays, schema=pa.schema(fields))
