"""The files of a URL list, read a batch at a time: parquet, csv, tsv or json lines, the texts also as .gz.

Memory holds a batch, however long the file.  Only the columns asked for are read.
"""

import contextlib
import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from infra import storage
from infra.errors import BadInputError

BATCH_ROWS = 1 << 16
_BLOCK_BYTES = 4 << 20
Kind = Literal["parquet", "csv", "tsv", "json"]
_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
_TEXT_SUFFIXES = [suffix + end for suffix, kind in _KINDS.items() if kind != "parquet" for end in ("", ".gz")]
SUFFIXES = (".parquet", *_TEXT_SUFFIXES)
_LINES_FOR_TYPES = 1000
_READ_PROBLEMS = (pa.ArrowException, OSError, EOFError, zlib.error, ValueError)


class _Format(NamedTuple):
    kind: Kind
    zipped: bool


def list_files(uri: str) -> list[str]:
    """The file itself, or the files of a folder that can be a list, in order of name.

    Raises:
        BadInputError: nothing is there, or a folder without such files.
    """
    if not storage.exists(uri):
        raise BadInputError(f"{uri} does not exist")
    files = [file for file in storage.list_files(uri) if file.endswith(SUFFIXES)]
    if not files and storage.is_folder(uri):
        raise BadInputError(
            f"folder {uri} holds no file that can be a list ({', '.join(_KINDS)}, the texts also .gz); folders in it are not "
            "looked into"
        )
    return files or [uri]


def read_schema(file_uri: str, *, header: Sequence[str] | None) -> pa.Schema:
    """Names and types of the columns of a file, from its beginning (or footer) alone.

    Args:
        header: names of the columns of a csv or tsv file without a line that says them.

    Raises:
        BadInputError: not of the format that its name says.
    """
    found = _format(file_uri)
    with _readable(file_uri, found):
        match found.kind:
            case "parquet":
                with storage.open_read(file_uri) as file:
                    return pq.read_schema(file)
            case "json":
                with _opened(file_uri, found) as file:
                    return _json_schema(file)
            case _:
                with _opened(file_uri, found) as file, _csv_reader(file, found.kind, header) as reader:
                    return pa.schema([(name, pa.string()) for name in reader.schema.names])


def iter_batches(
    file_uri: str, columns: Sequence[str], *, header: Sequence[str] | None, absent: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """The rows of a file, at most `BATCH_ROWS` at a time, of these columns only.

    Args:
        absent: columns that `read_schema` did not find.  Lines of JSON may have them all the same, further down.

    Raises:
        BadInputError: as `read_schema`; also in the middle of the file; or an absent column turns up.
    """
    found = _format(file_uri)
    names = list(columns)
    with _readable(file_uri, found):
        if found.kind == "parquet":
            with storage.open_read(file_uri) as file:
                parquet = pq.ParquetFile(file, buffer_size=_BLOCK_BYTES)  # without it a row group is read as a whole
                for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=names):
                    yield pa.Table.from_batches([batch]).select(names)
            return
        # the types that the beginning shows; a column that is empty there is taken for text
        schema = read_schema(file_uri, header=header)
        types = {name: pa.string() if pa.types.is_null(schema.field(name).type) else schema.field(name).type for name in names}
        with _opened(file_uri, found) as file:
            late = dict.fromkeys(absent, pa.string()) if found.kind == "json" else {}
            reader = _json_reader(file, types | late) if found.kind == "json" else _csv_reader(file, found.kind, header, types)
            with reader:
                for batch in reader:
                    _refuse_late(batch, list(late), file_uri)
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)]).select(names)


def _refuse_late(batch: pa.RecordBatch, names: Sequence[str], file_uri: str) -> None:
    for name in names:
        if batch[name].null_count < batch.num_rows:
            raise BadInputError(
                f"{file_uri}: {name!r} is in none of the first {_LINES_FOR_TYPES:,} lines, and in later ones; "
                "write it in the first line too, null where there is nothing"
            )


def _format(file_uri: str) -> _Format:
    """From the name; a file whose name says nothing is taken for parquet."""
    plain = file_uri.removesuffix(".gz")
    kinds: list[Kind] = [kind for suffix, kind in _KINDS.items() if plain.endswith(suffix)]
    return _Format(kinds[0] if kinds else "parquet", file_uri.endswith(".gz"))


@contextlib.contextmanager
def _readable(file_uri: str, found: _Format) -> Iterator[None]:
    try:
        yield
    except BadInputError:
        raise
    except _READ_PROBLEMS as error:
        zipped = "gzipped " if found.zipped else ""
        named = file_uri.endswith(SUFFIXES)
        why = "" if named else f"; its name ends in none of {', '.join(_KINDS)}, so it was taken for parquet"
        raise BadInputError(f"{file_uri} is not a readable {zipped}{found.kind} file: {str(error).rstrip('.')}{why}") from error


@contextlib.contextmanager
def _opened(file_uri: str, found: _Format) -> Iterator[IO[bytes]]:
    with storage.open_read(file_uri) as file:
        if found.zipped:
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield unzipped  # type: ignore[misc]
        else:
            yield file


def _csv_reader(
    file: IO[bytes], kind: Kind, header: Sequence[str] | None, types: dict[str, pa.DataType] | None = None
) -> "pyarrow.csv.CSVStreamingReader":
    quoted = kind == "csv"  # a tab-separated file has no quotes: captions there begin with them as they like
    return pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, column_names=list(header) if header else None),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="," if quoted else "\t", quote_char='"' if quoted else False, newlines_in_values=quoted
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types or {},
            include_columns=list(types) if types else None,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _json_schema(file: IO[bytes]) -> pa.Schema:
    """Of the first lines: Arrow's own would look at all columns, and stumble over those that nobody reads."""
    values: dict[str, list[Any]] = {}
    for number, line in enumerate(itertools.islice(file, _LINES_FOR_TYPES), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number:,} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number:,} holds {type(row).__name__}, not an object")
            for name, value in row.items():
                values.setdefault(name, []).append(value)
    return pa.schema([(name, _type_of(found)) for name, found in values.items()])


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.infer_type(values)
    except pa.ArrowException:  # of several kinds; if it is read, that fails by name
        return pa.string()


def _json_reader(file: IO[bytes], types: dict[str, pa.DataType]) -> "pyarrow.json.JSONStreamingReader":
    return pyarrow.json.open_json(
        file,
        read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
        ),
    )
