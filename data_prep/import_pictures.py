"""Pictures that are already here, embedded in parquet files, as raw shards: what a download would have left.

Curation and resharding then work unchanged.  A picture that is damaged or no picture counts as failed, with its reason.
"""

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from pydantic import Field, PositiveInt

from data_prep.accounting import require_all_accounted
from data_prep.audit import audit
from data_prep.partition import SHARD_NAME_DIGITS
from data_prep.raw import OUTCOME_SCHEMA, OUTCOMES_NAME, REPORT_NAME, DownloadReport, RawShard
from data_prep.url_list import URL_LIST_SCHEMA, cast_text, check_uid, derive_uid, parquet_files, read_parquet_columns
from infra import images, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError

CARRIED = ("concept", "group", "source", "licence")


class ImportConfig(StrictModel):
    """Which column holds what, and the limits on pictures."""

    image: str = "image"
    """Bytes of a JPEG, PNG or WebP file."""
    caption: str = "caption"
    uid: str = "uid"
    """Unique per row; derived from picture and caption when the column is absent."""
    captions: str = "captions"
    concept: str = "concept"
    group: str = "group"
    source: str = "source"
    licence: str = "licence"
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Rows to take: column of the file -> values, for example `{"split": ["train"]}`."""
    samples_per_shard: PositiveInt = 1000
    max_bytes: PositiveInt = 20_000_000
    max_pixels: PositiveInt = images.MAX_PIXELS


def import_pictures(
    parquet_uris: str | Sequence[str], *, config: ImportConfig, output_uri: str, progress: Callable[[int, int], None]
) -> DownloadReport:
    """Write raw shards from the pictures in parquet files (or folders of them).

    `progress` is called with (rows done, rows in all).

    Raises:
        BadInputError: nothing there, no parquet, a missing column, no rows, a uid twice.
        DataLossError: the counts do not add up.
    """
    started = time.monotonic()
    files = [file for uri in ([parquet_uris] if isinstance(parquet_uris, str) else parquet_uris) for file in parquet_files(uri)]
    storage.remove(storage.join(output_uri, REPORT_NAME))
    storage.remove(storage.join(output_uri, "shards"))
    total = sum(_num_rows(file) for file in files)
    progress(0, total)
    outcomes: list[dict[str, Any]] = []
    uids: list[str] = []
    shards: list[RawShard] = []
    for number, rows in enumerate(_in_shards(_read_rows(files, config), config.samples_per_shard)):
        uids += [row["uid"] for row in rows]
        shard, results = _write_shard(rows, number, config, output_uri=output_uri)
        shards.append(shard)
        outcomes += results
        progress(len(uids), total)
    if not uids:
        raise BadInputError(f"no rows to import from {', '.join(files)}" + (f" where {config.only}" if config.only else ""))
    doubled = [uid for uid, count in Counter(uids).items() if count > 1]
    if doubled:
        raise BadInputError(f"{len(doubled):,} uid(s) are there twice: {', '.join(doubled[:10])}. Remove the repetitions")
    progress(len(uids), len(uids))
    table = pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA)
    audited = audit(pa.table({"uid": uids}), table)
    require_all_accounted("import", seen=len(uids), out=audited.downloaded, lost=audited.failed)
    _write_parquet(table, storage.join(output_uri, OUTCOMES_NAME))
    report = DownloadReport(
        requested=len(uids),
        downloaded=audited.downloaded,
        failed=audited.failed,
        bytes=audited.bytes,
        seconds=time.monotonic() - started,
        shards=shards,
        lineage={"config": config.model_dump(mode="json"), "config_hash": content_hash(config), "formats": audited.formats},
    )
    storage.write_atomic(storage.join(output_uri, REPORT_NAME), report.model_dump_json(indent=1))
    return report


def _num_rows(uri: str) -> int:
    with storage.open_read(uri) as file:
        try:
            return int(pq.read_metadata(file).num_rows)
        except (pa.ArrowException, OSError) as error:
            raise BadInputError(f"{uri} is not a readable parquet file: {error}") from error


def _read_rows(files: list[str], config: ImportConfig) -> Iterator[dict[str, Any]]:
    names = {name: getattr(config, name) for name in ("image", "caption", "uid", "captions", *CARRIED)}
    filters = {f"only:{column}": column for column in config.only}
    required = {"image", "caption", *filters} | {
        name for name in names if name in config.model_fields_set and names[name] != name
    }
    row_number = 0
    for file in files:
        table = read_parquet_columns(file, names | filters, required=required)
        if not (pa.types.is_binary(table["image"].type) or pa.types.is_large_binary(table["image"].type)):
            raise BadInputError(f"{file}: column {config.image!r} is {table['image'].type}, expected the bytes of pictures")
        text = cast_text(table.select([name for name in table.column_names if name in URL_LIST_SCHEMA.names]), file)
        wanted = [table[f"only:{column}"].cast(pa.string()).to_pylist() for column in config.only]
        allowed = list(config.only.values())
        for place in range(table.num_rows):
            if any(column[place] not in values for column, values in zip(wanted, allowed, strict=True)):
                continue
            row = {name: text[name][place].as_py() for name in text.column_names}
            image = table["image"][place].as_py() or b""
            caption = row.get("caption") or ""
            row |= {"row": row_number, "image": image, "caption": caption}
            row["uid"] = row["uid"] if "uid" in row else derive_uid(hashlib.sha256(image).hexdigest(), caption)
            if problem := check_uid(row["uid"]):
                raise BadInputError(f"{file}: row {place}: uid {row['uid']!r} {problem}")
            yield row
            row_number += 1


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
    rows: list[dict[str, Any]], number: int, config: ImportConfig, *, output_uri: str
) -> tuple[RawShard, list[dict[str, Any]]]:
    """Tar, parquet and statistics, named as img2dataset names them."""
    started = time.time()
    name = f"{number:0{SHARD_NAME_DIGITS}d}"
    folder = f"shards/{name}"
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
    _write_parquet(pa.Table.from_pylist(metas), storage.join(output_uri, folder, f"{name}.parquet"))
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


def _write_parquet(table: pa.Table, uri: str) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    storage.write_atomic(uri, buffer.getvalue().to_pybytes())
