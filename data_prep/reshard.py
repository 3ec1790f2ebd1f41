"""Training shards: the kept samples, shuffled once, in WebDataset tars with the byte offset of every sample.

The same keep list and settings give the same bytes: order, keys and tar headers depend on nothing else.
"""

import hashlib
import io
import logging
import tarfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
from pydantic import PositiveInt

from data_prep.accounting import describe, require_all_accounted
from data_prep.curate import KEEP_SCHEMA
from data_prep.manifest import (
    MANIFEST_NAME,
    NO_SOURCE,
    VERIFIED_NAME,
    SampleRecord,
    ShardEntry,
    ShardManifest,
    record_verified,
    write_manifest,
)
from data_prep.raw import read_download_report
from infra import images, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, CorruptArtefactError, DataLossError

logger = logging.getLogger(__name__)

OWNER = "hyperclip"
TAR_BLOCK_BYTES = 512


class ReshardConfig(StrictModel):
    """How training shards are cut."""

    samples_per_shard: PositiveInt = 1000
    """A shard is put together in memory."""
    seed: int = 0
    """Of the order of the samples."""


def reshard(
    config: ReshardConfig, *, raw_uri: str, keep_list_uri: str, output_uri: str, progress: Callable[[int, int], None]
) -> ShardManifest:
    """Write the kept samples into new shards, the manifest last; safe to run again after a crash.

    `progress` is called with (samples written, samples in all).

    Raises:
        BadInputError: there is no keep list, or it keeps nothing.
        CorruptArtefactError: a raw shard does not hold the bytes that the keep list names; the file is named.
        DataLossError: requested samples are not the kept, the dropped and the failed together.
    """
    raw = read_download_report(raw_uri)
    rows = read_keep_list(keep_list_uri)
    kept = [row for row in rows if row["keep"]]
    dropped = Counter(row["reason"] for row in rows if not row["keep"])
    if not kept:
        raise BadInputError(
            f"{keep_list_uri} keeps none of {len(rows):,} samples (dropped: {describe(dropped)}): there is nothing to train on"
        )
    require_all_accounted("curation", seen=raw.downloaded, out=len(kept), lost=dropped)
    require_all_accounted("the whole preparation", seen=raw.requested, out=len(kept), lost=Counter(raw.failed) + dropped)
    kept.sort(key=lambda row: _shuffled(row["uid"], config.seed))
    _clear(output_uri)
    sources = sorted({row["source"] or NO_SOURCE for row in kept})
    shards: list[ShardEntry] = []
    done = 0
    progress(0, len(kept))
    for number, start in enumerate(range(0, len(kept), config.samples_per_shard)):
        part = kept[start : start + config.samples_per_shard]
        entry = _write_shard(part, name=f"{number:05d}.tar", raw_uri=raw_uri, output_uri=output_uri)
        source_ids = [sources.index(row["source"] or NO_SOURCE) for row in part]
        shards.append(entry.rebuilt(source_ids=source_ids))
        done += len(part)
        progress(done, len(kept))
    if done != len(kept):
        raise DataLossError(f"{len(kept):,} samples are kept, {done:,} were written")
    manifest = ShardManifest(
        shards=shards,
        num_samples=done,
        sources=sources,
        lineage={
            "config": config.model_dump(mode="json"),
            "config_hash": content_hash(config),
            "samples_hash": content_hash(sorted([row["uid"], row["sha256"]] for row in kept)),
            "requested": raw.requested,
            "failed": raw.failed,
            "dropped": dict(sorted(dropped.items())),
        },
    )
    write_manifest(manifest, output_uri)
    record_verified(manifest, output_uri)  # every shard was read back and hashed
    return manifest


def read_keep_list(uri: str) -> list[dict[str, Any]]:
    """The rows of a keep list.

    Raises:
        BadInputError: nothing is there, or it lacks a column.
    """
    with storage.open_read(uri) as file:
        try:
            table = pq.read_table(file)
        except (ValueError, OSError) as error:
            raise CorruptArtefactError(f"{uri} is no readable parquet file: {error}") from error
    if missing := [name for name in KEEP_SCHEMA.names if name not in table.column_names]:
        raise BadInputError(f"{uri} is no keep list: it lacks the columns {', '.join(missing)}")
    return table.to_pylist()


def _shuffled(uid: str, seed: int) -> bytes:
    """A sort key: an order that depends on seed and uids alone, not on where the samples came from."""
    return hashlib.sha256(f"{seed}:{uid}".encode()).digest()


def _clear(output_uri: str) -> None:
    """Take away what an earlier run left, the manifest first: without it the rest counts for nothing."""
    for name in (MANIFEST_NAME, VERIFIED_NAME):
        storage.remove(storage.join(output_uri, name))
    for uri in storage.list_files(output_uri, suffix=".tar"):
        storage.remove(uri)


def _write_shard(rows: list[dict[str, Any]], *, name: str, raw_uri: str, output_uri: str) -> ShardEntry:
    import webdataset  # here, as configurations are read where nothing is written

    buffer = io.BytesIO()
    offsets = []
    with webdataset.TarWriter(buffer, user=OWNER, group=OWNER, mtime=0, encoder=False) as writer:
        for row in rows:
            offsets.append(writer.tarstream.offset)
            record = _record(row)
            suffix = images.SUFFIXES[row["format"]]
            writer.write(
                {
                    "__key__": row["uid"],
                    suffix: _picture(row, raw_uri),
                    "json": record.model_dump_json(exclude_none=True).encode(),
                }
            )
    data = buffer.getvalue()
    entry = ShardEntry(path=name, samples=len(rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), offsets=offsets)
    uri = storage.join(output_uri, name)
    storage.write_atomic(uri, data)
    _check_offsets(uri, entry, [row["uid"] for row in rows])
    return entry


def _picture(row: dict[str, Any], raw_uri: str) -> bytes:
    uri = storage.join(raw_uri, row["shard"])
    start, end = row["image_offset"], row["image_offset"] + row["image_bytes"]
    data = storage.read_range(uri, start, end) if storage.exists(uri) else b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise CorruptArtefactError(
            f"{uri} does not hold picture {row['uid']!r} at bytes {start:,} to {end:,} as the keep list says: it is missing, "
            "truncated or was changed. Run the download and the curation again"
        )
    return data


def _record(row: dict[str, Any]) -> SampleRecord:
    captions = [text for text in [row["caption"], *(row["captions"] or [])] if text and text.strip()]
    return SampleRecord(
        uid=row["uid"],
        captions=list(dict.fromkeys(captions)),
        **{name: row[name] for name in ("concept", "group", "source", "licence", "sha256", "width", "height")},
    )


def _check_offsets(uri: str, entry: ShardEntry, uids: list[str]) -> None:
    """Read the shard back as it lies in storage: hash, and the name in the tar header at every offset."""
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptArtefactError(f"{uri} was written and reads back with other bytes: the storage is at fault")
    for offset, uid in zip(entry.offsets, uids, strict=True):
        header = tarfile.TarInfo.frombuf(data[offset : offset + TAR_BLOCK_BYTES], "utf-8", "strict")
        if header.name.rpartition(".")[0] != uid:
            raise CorruptArtefactError(f"{uri}: offset {offset} is at {header.name!r}, not at the start of sample {uid!r}")
