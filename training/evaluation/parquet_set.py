"""Evaluation pictures inside parquet files: columns `image` and `caption`, and where they are there `concept` and `group`.

The small columns are read at once, the pictures in batches of bounded memory however large a row group is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage
from infra.config import content_hash
from infra.errors import BadInputError
from training.evaluation.evaluation_set import EvaluationSet, Reading, ReadingConfig, further_reading, object_reading

IMAGE, CAPTION, CONCEPT, GROUP = "image", "caption", "concept", "group"
ROWS_AT_ONCE = 128
READ_BYTES = 1 << 20
"""Without a buffer, pyarrow reads the pictures of a row group as a whole."""


def parquet_set(
    uris: Sequence[str], *, readings: Mapping[str, ReadingConfig] | None = None, only: Mapping[str, str] | None = None
) -> EvaluationSet:
    """Pictures of parquet files, one after another.

    Args:
        readings: further readings by name.
        only: column -> value of the rows that are taken.

    Raises:
        BadInputError: no parquet, a missing column or one of a wrong type, no rows, a row without caption.
    """
    readings, only = readings or {}, only or {}
    columns = {CAPTION: CAPTION, CONCEPT: CONCEPT, GROUP: GROUP, **{name: found.column for name, found in readings.items()}}
    texts: dict[str, list[str | None]] = {ours: [] for ours in columns}
    places: list[str] = []
    rows: list[list[int]] = []
    for uri in uris:
        with _opened(uri) as parquet:
            required = [IMAGE, CAPTION, *(found.column for found in readings.values()), *only]
            _check_columns(parquet.schema_arrow, required, uri=uri)
            _check_pictures(parquet.schema_arrow, uri=uri)
            taken = _rows_where(parquet, only, uri=uri)
            rows.append(taken)
            places += [f"{uri}, row {row}" for row in taken]
            for ours, column in columns.items():
                texts[ours] += _texts(parquet, column, taken, uri=uri)
    if not places:
        chosen = " and ".join(f"{column} is {value!r}" for column, value in only.items())
        raise BadInputError(f"{', '.join(uris)}: no rows" + (f" where {chosen}" if chosen else ""))

    def stored() -> Iterator[tuple[str, bytes]]:
        for uri, taken in zip(uris, rows, strict=True):
            yield from _pictures(uri, taken)

    captions = [caption or "" for caption in texts[CAPTION]]
    return EvaluationSet(
        name=", ".join(PurePosixPath(uri).stem for uri in uris),
        identity=content_hash({"files": [storage.sha256(uri) for uri in uris], "only": dict(only)}),
        objects=object_reading(captions, texts[CONCEPT], texts[GROUP], places=places),
        further=tuple(further_reading(name, texts[name], found.names) for name, found in readings.items()),
        captions=tuple(captions),
        templates=None,
        stored=stored,
    )


def parquet_names(uris: Sequence[str]) -> Reading:
    """What the rows of parquet files are called, and their topics, without the pictures.

    Raises:
        BadInputError: no parquet, a missing column or one of a wrong type.
    """
    texts: dict[str, list[str | None]] = {CAPTION: [], CONCEPT: [], GROUP: []}
    for uri in uris:
        with _opened(uri) as parquet:
            _check_columns(parquet.schema_arrow, [CAPTION], uri=uri)
            rows = range(parquet.metadata.num_rows)
            for column, found in texts.items():
                found += _texts(parquet, column, rows, uri=uri)
    named = [row for row, caption in enumerate(texts[CAPTION]) if caption and caption.strip()]
    captions, concepts, groups = ([found[row] for row in named] for found in texts.values())
    return object_reading([caption or "" for caption in captions], concepts, groups)


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    with storage.open_read(uri) as file:
        try:
            parquet = pq.ParquetFile(file, buffer_size=READ_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise BadInputError(f"{uri} is not a readable parquet file: {error}") from error
        try:
            yield parquet
        except (pa.ArrowException, OSError) as error:
            raise BadInputError(f"{uri} is damaged: {error}") from error


def _check_columns(schema: pa.Schema, required: Sequence[str], *, uri: str) -> None:
    if missing := [name for name in dict.fromkeys(required) if name not in schema.names]:
        raise BadInputError(
            f"{uri} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(schema.names) or 'none'}"
        )


def _check_pictures(schema: pa.Schema, *, uri: str) -> None:
    found = schema.field(IMAGE).type
    if pa.types.is_struct(found):  # {bytes, path}, as dataset libraries write it
        place = found.get_field_index("bytes")
        found = found.field(place).type if place >= 0 else found
    if not (pa.types.is_binary(found) or pa.types.is_large_binary(found)):
        raise BadInputError(f"{uri}: column {IMAGE!r} is {found}, expected the bytes of pictures")


def _rows_where(parquet: pq.ParquetFile, only: Mapping[str, str], *, uri: str) -> list[int]:
    taken = list(range(parquet.metadata.num_rows))
    for column, value in only.items():
        found = _texts(parquet, column, taken, uri=uri)
        taken = [row for row, text in zip(taken, found, strict=True) if text == value]
    return taken


def _texts(parquet: pq.ParquetFile, column: str, rows: Sequence[int], *, uri: str) -> list[str | None]:
    """Values of a column as texts; none where there is no such column."""
    if column not in parquet.schema_arrow.names:
        return [None] * len(rows)
    found = parquet.read(columns=[column])[column]
    if pa.types.is_nested(found.type):
        raise BadInputError(f"{uri}: column {column!r} is {found.type}, expected texts")
    try:
        values: list[str | None] = found.cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise BadInputError(f"{uri}: column {column!r} is {found.type}, expected texts: {error}") from error
    return [values[row] for row in rows]


def _pictures(uri: str, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    wanted, first = set(rows), 0
    with _opened(uri) as parquet:
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=[IMAGE]):
            column = batch.column(0)
            if pa.types.is_struct(column.type):
                column = pc.struct_field(column, "bytes")
            for place in range(len(column)):
                if first + place in wanted:
                    yield f"{uri}, row {first + place}", column[place].as_py() or b""
            first += len(column)
