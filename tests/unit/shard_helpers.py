"""Training shards for tests, benchmarks and chaos runs, written as reshard writes them."""

import tarfile
from collections.abc import Iterable
from hashlib import sha256
from itertools import islice
from pathlib import Path

from data_prep.manifest import NO_SOURCE, SampleRecord, ShardEntry, ShardManifest, record_verified, write_manifest
from infra import images

BLOCK_BYTES = 512
TAR_END = bytes(2 * BLOCK_BYTES)

Sample = tuple[bytes, SampleRecord]


def sample(picture: bytes, number: int, *, caption: str = "", **changes: object) -> Sample:
    """A picture with its record."""
    info = images.probe(picture) if "width" not in changes else None
    size = {"width": info.width, "height": info.height} if info else {}
    captions = [caption or f"picture number {number}"]
    fields = {"uid": f"s{number:09d}", "captions": captions, "sha256": sha256(picture).hexdigest(), **size, **changes}
    return picture, SampleRecord.model_validate(fields)


def write_shards(folder: Path, samples: Iterable[Sample], *, samples_per_shard: int, suffix: str = "jpg") -> ShardManifest:
    """Shards with their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    remaining = iter(samples)
    entries: list[ShardEntry] = []
    sources: list[str] = []
    while part := list(islice(remaining, samples_per_shard)):
        name = f"{len(entries):05d}.tar"
        offsets, pieces, length = [], [], 0
        for picture, record in part:
            offsets.append(length)
            json = record.model_dump_json(exclude_none=True).encode()
            pieces.append(tar_member(f"{record.uid}.{suffix}", picture) + tar_member(f"{record.uid}.json", json))
            length += len(pieces[-1])
        data = b"".join([*pieces, TAR_END])
        (folder / name).write_bytes(data)
        names = [record.source or NO_SOURCE for _, record in part]
        sources += [name for name in dict.fromkeys(names) if name not in sources]
        entries.append(
            ShardEntry(
                path=name,
                samples=len(part),
                bytes=len(data),
                sha256=sha256(data).hexdigest(),
                offsets=offsets,
                source_ids=[sources.index(name) for name in names],
            )
        )
    manifest = ShardManifest(shards=entries, num_samples=sum(entry.samples for entry in entries), sources=sources)
    write_manifest(manifest, str(folder))
    record_verified(manifest, str(folder))
    return manifest


def tar_member(name: str, data: bytes) -> bytes:
    """One file of a tar, with its header and padding."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK_BYTES)
