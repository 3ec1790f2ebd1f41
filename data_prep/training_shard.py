"""One training shard: its pictures fetched from the raw shards, written as a WebDataset tar, read back and checked.

A plain function that a Ray task runs.  It leaves a note beside the shards of what the shard was made from, so that a run that
goes on keeps it.
"""

import hashlib
import io
import tarfile
from typing import Any

import pyarrow as pa

from data_prep.manifest import NO_SOURCE, SampleRecord, ShardEntry
from infra import artefacts, images, storage
from infra.config import StrictModel, content_hash
from infra.errors import CorruptArtefactError

OWNER = "hyperclip"
TAR_BLOCK_BYTES = 512
NOTES = "written"
"""Folder of the notes; gone when the manifest is there."""


class ShardNote(StrictModel):
    """`written/00000.json`: a shard that is whole, and what it was made from."""

    made_from: str
    entry: ShardEntry


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


def write_training_shard(number: int, rows: pa.Table, sources: list[str], raw_uri: str, output_uri: str) -> ShardEntry:
    """Write a shard of these rows of the keep list, or find that it is there already.

    Args:
        rows: with the columns `kept_samples.NEEDED`, in the order of the shard.
        sources: names, for the places that the manifest gives to the samples.

    Raises:
        CorruptArtefactError: a raw shard does not hold the bytes that the keep list names; the file is named.
    """
    samples = rows.to_pylist()
    made_from = content_hash({"samples": samples, "sources": sources})
    name = shard_name(number)
    uri, note_uri = storage.join(output_uri, name), storage.join(output_uri, NOTES, f"{number:05d}.json")
    if found := _note(note_uri, made_from):
        if storage.exists(uri) and storage.sha256(uri) == found.sha256:
            return found
        storage.remove(note_uri)
    data, offsets = _tar_of(samples, raw_uri)
    entry = ShardEntry(
        path=name,
        samples=len(samples),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        offsets=offsets,
        source_ids=[sources.index(row["source"] or NO_SOURCE) for row in samples],
    )
    storage.write_atomic(uri, data)
    check_offsets(uri, entry, [row["uid"] for row in samples])
    storage.write_atomic(note_uri, ShardNote(made_from=made_from, entry=entry).model_dump_json())
    return entry


def _note(uri: str, made_from: str) -> ShardEntry | None:
    if not storage.exists(uri):
        return None
    try:
        note = artefacts.read_model(uri, ShardNote)
    except CorruptArtefactError:
        return None
    return note.entry if note.made_from == made_from else None


def _tar_of(samples: list[dict[str, Any]], raw_uri: str) -> tuple[bytes, list[int]]:
    pictures = _pictures(samples, raw_uri)
    members = [
        (row["uid"], images.SUFFIXES[row["format"]], picture, _record(row).model_dump_json(exclude_none=True).encode())
        for row, picture in zip(samples, pictures, strict=True)
    ]
    return tar_of(members)


def tar_of(members: list[tuple[str, str, bytes, bytes]]) -> tuple[bytes, list[int]]:
    """A training shard of (uid, suffix of the picture, picture, JSON), and the byte where each begins."""
    import webdataset  # here, as configurations are read where nothing is written

    buffer = io.BytesIO()
    offsets = []
    with webdataset.TarWriter(buffer, user=OWNER, group=OWNER, mtime=0, encoder=False) as writer:
        for uid, suffix, picture, record in members:
            offsets.append(writer.tarstream.offset)
            writer.write({"__key__": uid, suffix: picture, "json": record})
    return buffer.getvalue(), offsets


def _pictures(samples: list[dict[str, Any]], raw_uri: str) -> list[bytes]:
    ranges = [
        (storage.join(raw_uri, row["shard"]), row["image_offset"], row["image_offset"] + row["image_bytes"]) for row in samples
    ]
    pictures = []
    for row, (uri, start, end), read in zip(samples, ranges, storage.read_ranges(ranges), strict=True):
        if isinstance(read, Exception) and not isinstance(read, FileNotFoundError):
            raise read  # the store's trouble: the task is tried again
        if isinstance(read, Exception) or hashlib.sha256(read).hexdigest() != row["sha256"]:
            raise CorruptArtefactError(
                f"{uri} does not hold picture {row['uid']!r} at bytes {start:,} to {end:,} as the keep list says: "
                "it is missing, truncated or was changed. Run the download and the curation again"
            )
        pictures.append(read)
    return pictures


def _record(row: dict[str, Any]) -> SampleRecord:
    captions = [text for text in [row["caption"], *(row["captions"] or [])] if text and text.strip()]
    return SampleRecord(
        uid=row["uid"],
        captions=list(dict.fromkeys(captions)),
        **{name: row[name] for name in ("concept", "group", "source", "licence", "sha256", "width", "height")},
    )


def check_offsets(uri: str, entry: ShardEntry, uids: list[str]) -> None:
    """Read the shard back as it lies in storage: hash, and the name in the tar header at every offset.

    Raises:
        CorruptArtefactError: it reads back with other bytes.
    """
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptArtefactError(f"{uri} was written and reads back with other bytes: the storage is at fault")
    for offset, uid in zip(entry.offsets, uids, strict=True):
        header = tarfile.TarInfo.frombuf(data[offset : offset + TAR_BLOCK_BYTES], "utf-8", "strict")
        if header.name.rpartition(".")[0] != uid:
            raise CorruptArtefactError(f"{uri}: offset {offset} is at {header.name!r}, not at the start of sample {uid!r}")
