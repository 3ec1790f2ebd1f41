"""One partition of parquet files with pictures inside, as raw shards: what a download of its rows would have left.

Everything is a plain function: Ray comes in with `import_pictures.py`.  A file is read one batch at a time, so memory holds a
shard, however large the file and its row groups are.
"""

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt

from data_prep.accounting import require_all_accounted
from data_prep.fan_out import TaskConfig
from data_prep.fetch_shards import SHARD_NAME_DIGITS
from data_prep.partition_report import PartitionReport, finished_report, report_uri, write_finished, write_table
from data_prep.raw import REMOVED, RawShard
from data_prep.removal.requests import Forgotten, forgotten_in
from data_prep.url_list import URL_LIST_SCHEMA, cast_text, check_uid, derive_uid
from infra import images, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, DataLossError

CARRIED = ("concept", "group", "source", "licence")
_WITHOUT_EFFECT = {"min_success_rate", "tasks"}
_READ_BYTES = 1 << 20


class PictureColumns(StrictModel):
    """Which column of the parquet files holds what.

    Only `image` and `caption` must be there.  The others may be absent, unless a configuration names them.
    """

    image: str = "image"
    """Bytes of a JPEG, PNG or WebP file, or a struct with them in its field `bytes`."""
    caption: str = "caption"
    uid: str = "uid"
    """Unique per row; derived from picture and caption when the column is absent."""
    captions: str = "captions"
    """A list of further captions of the same picture."""
    concept: str = "concept"
    group: str = "group"
    source: str = "source"
    licence: str = "licence"


class ImportConfig(StrictModel):
    """How pictures are taken out of parquet files."""

    columns: PictureColumns = PictureColumns()
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Rows to take: column of the file -> values, for example `{split: [train]}`."""
    samples_per_shard: PositiveInt = 1000
    """Rows that a raw shard covers, failed ones included."""
    samples_per_partition: PositiveInt = 5000
    """Rows that a Ray task imports, in whole row groups: what is done again when a task dies."""
    max_bytes: PositiveInt = 20_000_000
    max_pixels: PositiveInt = images.MAX_PIXELS
    min_success_rate: float = Field(default=0.5, ge=0, le=1)
    """Below it the step fails: something is wrong with the files."""
    tasks: TaskConfig = TaskConfig()
    """How the partitions are run."""

    def fingerprint(self) -> str:
        """Hash of what decides the result."""
        return content_hash(self.model_dump(mode="json", include=ImportConfig.model_fields.keys() - _WITHOUT_EFFECT))


class PicturePartition(NamedTuple):
    number: int
    first_shard: int
    """Number of its first shard: shard numbers are unique over the whole import."""
    file: str
    file_version: str
    """Changes when the file does."""
    row_groups: tuple[int, ...]
    first_row: int
    """Its place among the rows of all files."""
    num_rows: int

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    @property
    def round(self) -> int:
        return 1

    def fingerprint(self) -> str:
        return content_hash(list(self))


def import_partition(partition: PicturePartition, config: ImportConfig, output_uri: str) -> PartitionReport:
    """Write the raw shards of a partition; does nothing when that is done, and starts afresh when it was left half-done.

    Raises:
        BadInputError: a column has the wrong type, or a uid cannot name a file.
        DataLossError: the file has other rows than it had when it was planned.
    """
    if done := finished_report(partition, config, output_uri=output_uri):
        return done
    started = time.monotonic()
    folder = f"shards/{partition.name}"
    storage.remove(report_uri(output_uri, partition))
    storage.remove(storage.join(output_uri, folder))
    shards: list[RawShard] = []
    outcomes: list[dict[str, Any]] = []
    forgotten = forgotten_in(output_uri)
    for number, rows in enumerate(_in_shards(_read_rows(partition, config), config.samples_per_shard), partition.first_shard):
        shard, results = _write_shard(rows, number, config, forgotten, output_uri=output_uri, folder=folder)
        shards.append(shard)
        outcomes += results
    failed = Counter(outcome["reason"] for outcome in outcomes if outcome["state"] == "failed")
    imported = [outcome for outcome in outcomes if outcome["state"] == "downloaded"]
    require_all_accounted(f"import of partition {partition.number}", seen=len(outcomes), out=len(imported), lost=failed)
    report = PartitionReport(
        partition=partition.number,
        requested=len(outcomes),
        downloaded=len(imported),
        failed=dict(sorted(failed.items())),
        formats=dict(sorted(Counter(outcome["format"] for outcome in imported).items())),
        bytes=sum(outcome["bytes"] for outcome in imported),
        seconds=time.monotonic() - started,
        shards=shards,
        config_hash=config.fingerprint(),
        rows_hash=partition.fingerprint(),
    )
    write_finished(partition, report, outcomes, output_uri=output_uri)
    return report


def column_names(config: ImportConfig, present: list[str], *, file: str) -> dict[str, str]:
    """Our name -> its name, of the columns that are read.

    Raises:
        BadInputError: one that must be there is missing; those that are there are named.
    """
    columns = config.columns
    wanted = {name: str(getattr(columns, name)) for name in PictureColumns.model_fields}
    # a name someone wrote down must be there; a default that is absent only means that the file has no such column
    required = {"image", "caption"} | {name for name in columns.model_fields_set if wanted[name] != name}
    missing = [wanted[name] for name in wanted if name in required] + list(config.only)
    missing = [name for name in missing if name not in present]
    if missing:
        raise BadInputError(
            f"{file} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(present) or 'none'}"
        )
    return {ours: theirs for ours, theirs in wanted.items() if theirs in present}


def picture_type_problem(found: pa.DataType) -> str | None:
    """What is wrong with the type of the column of pictures, or None."""
    inner = found
    if pa.types.is_struct(found):  # {bytes, path}, as dataset libraries write it
        place = found.get_field_index("bytes")
        inner = found.field(place).type if place >= 0 else found
    binary = pa.types.is_binary(inner) or pa.types.is_large_binary(inner)
    return None if binary else f"is {found}, expected the bytes of pictures"


def _read_rows(partition: PicturePartition, config: ImportConfig) -> Iterator[dict[str, Any]]:
    """The chosen rows of a partition."""
    place = 0
    with storage.open_read(partition.file) as file:
        try:
            parquet = pq.ParquetFile(file, buffer_size=_READ_BYTES)  # without it a row group would be read as a whole
            names = column_names(config, parquet.schema_arrow.names, file=partition.file)
            batches = parquet.iter_batches(
                batch_size=config.samples_per_shard,
                row_groups=list(partition.row_groups),
                columns=list(dict.fromkeys([*names.values(), *config.only])),
            )
            for batch in batches:
                yield from _rows_of(pa.Table.from_batches([batch]), names, place, partition, config)
                place += batch.num_rows
        except OSError as error:  # tried again by the task's retries, as a store's hiccup looks no different
            raise OSError(f"{partition.file}: {error}") from error
    if place != partition.num_rows:
        raise DataLossError(
            f"{partition.file} gave {place:,} of {partition.num_rows:,} rows: it was changed meanwhile; run again"
        )


def _rows_of(
    table: pa.Table, names: dict[str, str], before: int, partition: PicturePartition, config: ImportConfig
) -> Iterator[dict[str, Any]]:
    text_names = [name for name in names if name in URL_LIST_SCHEMA.names]
    text = cast_text(pa.table({name: table[names[name]] for name in text_names}), partition.file).to_pydict()
    images_column = table[names["image"]]
    if pa.types.is_struct(images_column.type):
        images_column = pc.struct_field(images_column, "bytes")
    chosen = [(set(values), table[column].cast(pa.string()).to_pylist()) for column, values in config.only.items()]
    for place in range(table.num_rows):
        if any(found[place] not in values for values, found in chosen):
            continue
        row = {name: values[place] for name, values in text.items()}
        image = images_column[place].as_py() or b""
        caption = row["caption"] or ""
        row |= {"row": partition.first_row + before + place, "image": image, "caption": caption}
        row["uid"] = row["uid"] if "uid" in row else derive_uid(hashlib.sha256(image).hexdigest(), caption)
        if problem := check_uid(row["uid"]):
            raise BadInputError(f"{partition.file}: row {row['row']} of all: uid {row['uid']!r} {problem}")
        yield row


def _in_shards(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _write_shard(
    rows: list[dict[str, Any]], number: int, config: ImportConfig, forgotten: Forgotten, *, output_uri: str, folder: str
) -> tuple[RawShard, list[dict[str, Any]]]:
    """Tar, parquet and statistics, named as img2dataset names them."""
    import webdataset  # here, as configurations are read where nothing is written

    started = time.time()
    name = f"{number:0{SHARD_NAME_DIGITS}d}"
    path = f"{folder}/{name}.tar"
    buffer = io.BytesIO()
    outcomes, metas = [], []
    with webdataset.TarWriter(buffer, mtime=0, encoder=False) as writer:
        for place, row in enumerate(rows):
            image = row["image"]
            key = f"{number:0{SHARD_NAME_DIGITS}d}{place:0{len(str(config.samples_per_shard))}d}"
            record = {name: row.get(name) for name in ("row", "uid", "caption", "captions", *CARRIED)} | {"key": key}
            outcome = {"row": row["row"], "uid": row["uid"], "sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image)}
            info, reason, detail = _probe(image, config)
            if forgotten.covers(uid=row["uid"], url=None):
                info, reason, detail = None, REMOVED, None
                record |= {"caption": "", "captions": None}
            if info is None:
                outcome |= {"state": "failed", "reason": reason, "detail": detail}
                metas.append(record | {"status": "failed_to_download", "error_message": f"[{reason}] {detail}"})
            else:
                writer.write({"__key__": key, images.SUFFIXES[info.format]: image, "json": json.dumps(record).encode()})
                size = {"width": info.width, "height": info.height}
                outcome |= {"state": "downloaded", "shard": path, "key": key, "format": info.format, **size}
                metas.append(record | {"status": "success", "error_message": None})
            outcomes.append(outcome)
    data = buffer.getvalue()
    storage.write_atomic(storage.join(output_uri, path), data)
    write_table(pa.Table.from_pylist(metas), storage.join(output_uri, folder, f"{name}.parquet"))
    successes = sum(outcome["state"] == "downloaded" for outcome in outcomes)
    stats = {
        "count": len(rows),
        "successes": successes,
        "failed_to_download": len(rows) - successes,
        "failed_to_resize": 0,
        "duration": time.time() - started,
        "start_time": started,
        "end_time": time.time(),
        "status_dict": dict(Counter(outcome.get("reason") or "success" for outcome in outcomes)),
    }
    storage.write_atomic(storage.join(output_uri, folder, f"{name}_stats.json"), json.dumps(stats, indent=1))
    shard = RawShard(path=path, samples=successes, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return shard, outcomes


def _probe(image: bytes, config: ImportConfig) -> tuple[images.ImageInfo | None, str | None, str | None]:
    """Format and size, or the word and the message for why there are none."""
    if len(image) > config.max_bytes:
        return None, "too_large", f"{len(image):,} bytes, more than the {config.max_bytes:,} allowed"
    try:
        return images.probe(image, max_pixels=config.max_pixels), None, None
    except images.ImageError as error:
        return None, error.reason, str(error)
