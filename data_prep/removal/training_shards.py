"""Forgetting samples in training shards: those that hold them are written anew without them."""

import hashlib
import io
import tarfile
from typing import NamedTuple

from data_prep.manifest import (
    SampleRecord,
    ShardEntry,
    ShardManifest,
    is_verified,
    read_manifest,
    record_verified,
    write_manifest,
)
from data_prep.raw import REMOVED
from data_prep.removal.raw_shards import Targets, is_meant
from data_prep.training_shard import TAR_BLOCK_BYTES, check_offsets, tar_of
from infra import storage


def count_in_shards(shards_uri: str, targets: Targets) -> int:
    manifest = read_manifest(shards_uri)
    return sum(len(_places(shards_uri, shard, targets)) for shard in manifest.shards)


def forget_in_shards(shards_uri: str, targets: Targets) -> int:
    """Write the shards that hold the samples anew without them, then the manifest, then remove the old ones.

    Until the manifest is replaced, in one write, the old shards are all there; returns how many samples went.
    """
    manifest = read_manifest(shards_uri)
    was_verified = is_verified(manifest, shards_uri)
    shards: list[ShardEntry] = []
    gone = 0
    for shard in manifest.shards:
        places = _places(shards_uri, shard, targets)
        if places and (rest := _without(shards_uri, shard, places)):
            shards.append(rest)
        elif not places:
            shards.append(shard)
        gone += len(places)
    if gone:
        lineage = manifest.lineage | {REMOVED: manifest.lineage.get(REMOVED, 0) + gone}
        changed: ShardManifest = manifest.rebuilt(
            shards=[shard.model_dump() for shard in shards], num_samples=manifest.num_samples - gone, lineage=lineage
        )
        write_manifest(changed, shards_uri)
        if was_verified:  # the new ones were read back and hashed
            record_verified(changed, shards_uri)
        manifest = changed
    named = {shard.path for shard in manifest.shards}
    for uri in storage.list_files(shards_uri, suffix=".tar"):  # also those that a killed attempt left
        if uri.rpartition("/")[2] not in named:
            storage.remove(uri)
    return gone


def _places(shards_uri: str, shard: ShardEntry, targets: Targets) -> list[int]:
    """Places of the targets in a shard: by the names in the tar headers, then by the records of those found."""
    uri = storage.join(shards_uri, shard.path)
    heads = storage.read_ranges([(uri, offset, offset + TAR_BLOCK_BYTES) for offset in shard.offsets])
    ends = [*shard.offsets[1:], shard.bytes]
    found = []
    for place, (head, start, end) in enumerate(zip(heads, shard.offsets, ends, strict=True)):
        if isinstance(head, Exception):
            raise head
        uid = tarfile.TarInfo.frombuf(head, "utf-8", "strict").name.rpartition(".")[0]
        if uid in targets and is_meant(uid, _samples(storage.read_range(uri, start, end))[0].record.sha256, targets):
            found.append(place)
    return found


def _without(shards_uri: str, shard: ShardEntry, places: list[int]) -> ShardEntry | None:
    """The shard under another name without some of its samples; None when nothing is left."""
    samples = _samples(storage.read_bytes(storage.join(shards_uri, shard.path)))
    gone = set(places)
    stay = [place for place in range(len(samples)) if place not in gone]
    if not stay:
        return None
    left = [samples[place] for place in stay]
    data, offsets = tar_of([(sample.record.uid, sample.suffix, sample.picture, sample.json) for sample in left])
    digest = hashlib.sha256(data).hexdigest()
    entry = ShardEntry(
        path=f"{shard.path.partition('.')[0]}.{digest[:12]}.tar",
        samples=len(stay),
        bytes=len(data),
        sha256=digest,
        offsets=offsets,
        source_ids=[shard.source_ids[place] for place in stay] if shard.source_ids else None,
    )
    uri = storage.join(shards_uri, entry.path)
    storage.write_atomic(uri, data)
    check_offsets(uri, entry, [sample.record.uid for sample in left])
    return entry


class _Sample(NamedTuple):
    suffix: str
    picture: bytes
    json: bytes
    record: SampleRecord


def _samples(data: bytes) -> list[_Sample]:
    """The samples of a training shard, or of a part of one."""
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            uid, _, suffix = member.name.rpartition(".")
            content = tar.extractfile(member)
            files.setdefault(uid, {})[suffix] = content.read() if content else b""
    found = []
    for parts in files.values():
        record = parts.pop("json")
        ((suffix, picture),) = parts.items()
        found.append(_Sample(suffix, picture, record, SampleRecord.model_validate_json(record)))
    return found
