"""The manifest of training shards: what curation hands to training.

A shard is a WebDataset tar; sample `i` of it starts at byte `offsets[i]` (its first tar header) and ends where the next one
starts.  The manifest is written after every shard, so its presence means that all of them are whole.
"""

import json
import logging
import posixpath
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, CorruptArtefactError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
VERIFIED_NAME = "verified.json"
SCHEMA_VERSION = 1
NO_SOURCE = "no source"
HASH_THREADS = 8


class SampleRecord(StrictModel):
    """The `KEY.json` beside the picture `KEY.{jpg,png,webp}` of a sample."""

    uid: str
    captions: list[str]
    """At least one; the first is the caption that came with the URL."""
    concept: str | None = None
    """What the picture shows, where known: samples with the same concept are positives of each other."""
    group: str | None = None
    """The topic, where known."""
    source: str | None = None
    licence: str | None = None
    sha256: str
    """Of the picture's bytes as stored."""
    width: PositiveInt
    height: PositiveInt


class ShardEntry(StrictModel):
    path: str
    """Relative to the manifest."""
    samples: PositiveInt
    bytes: PositiveInt
    sha256: str
    offsets: list[NonNegativeInt]
    """Byte of the first tar header of each sample, increasing."""
    source_ids: list[NonNegativeInt] | None = None
    """Of each sample, its place in the manifest's `sources`; none where the samples came without sources."""

    @model_validator(mode="after")
    def _entries_match(self) -> "ShardEntry":
        if len(self.offsets) != self.samples:
            raise ValueError(f"{self.path}: {len(self.offsets)} offsets for {self.samples} samples")
        if (np.diff([*self.offsets, self.bytes]) <= 0).any():
            raise ValueError(f"{self.path}: offsets do not increase within {self.bytes} bytes")
        if self.source_ids is not None and len(self.source_ids) != self.samples:
            raise ValueError(f"{self.path}: {len(self.source_ids)} sources for {self.samples} samples")
        return self


class ShardManifest(StrictModel):
    schema_version: Literal[1] = 1
    shards: list[ShardEntry]
    num_samples: NonNegativeInt
    sources: list[str] = Field(default_factory=list)
    """Names of the sources that the samples came from; `NO_SOURCE` for those without one."""
    lineage: dict[str, Any] = Field(default_factory=dict)
    """What the shards were made from: inputs, rules, counts by reason, versions."""

    @model_validator(mode="after")
    def _counts_match(self) -> "ShardManifest":
        if (total := sum(shard.samples for shard in self.shards)) != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, the shards hold {total}")
        if any(max(shard.source_ids or [0]) >= max(len(self.sources), 1) for shard in self.shards):
            raise ValueError(f"a sample's source is not among the {len(self.sources)} named")
        return self


def write_manifest(manifest: ShardManifest, folder_uri: str) -> str:
    """Write the manifest beside its shards, last and atomically; returns its URI."""
    uri = storage.join(folder_uri, MANIFEST_NAME)
    storage.write_atomic(uri, manifest.model_dump_json(indent=1))
    return uri


def read_manifest(folder_uri: str) -> ShardManifest:
    """Read and check the manifest of a folder of shards (the shards themselves are checked by `verify_shards`).

    Raises:
        BadInputError: there is none, or a newer version of this project wrote it.
        CorruptArtefactError: it does not hold together.
    """
    uri = storage.join(folder_uri, MANIFEST_NAME)
    if not storage.exists(uri):
        raise BadInputError(
            f"{folder_uri} holds no {MANIFEST_NAME}: its shards are absent or unfinished; run the reshard step again"
        )
    try:
        return artefacts.read_model(uri, ShardManifest)
    except CorruptArtefactError:  # asked only now, because a manifest may be hundreds of megabytes
        artefacts.check_schema_version(uri, newest=SCHEMA_VERSION)
        raise


def verify_shards(manifest: ShardManifest, folder_uri: str) -> None:
    """Compare every shard with the manifest: its size always, its SHA-256 unless it is the very object that was hashed before.

    What a store says of an object (its ETag, or its time of change) is kept in a marker beside the manifest once all hashes
    were right, so a start costs one listing (a request per 1,000 shards) and not a pass over terabytes.  Resharding hashes what
    it wrote and leaves the marker; copied shards are hashed once, at the speed of the store.  Damage that leaves size and time
    of change as they were is found when the sample is read: each one's picture is hashed then.

    Raises:
        CorruptArtefactError: a shard is missing, truncated or changed; all of them are named.
    """
    found = _list_shards(manifest, folder_uri)
    problems = []
    for shard in manifest.shards:
        if shard.path not in found:
            problems.append(f"{shard.path}: missing")
        elif (size := found[shard.path].size) != shard.bytes:
            problems.append(f"{shard.path}: {size:,} bytes, expected {shard.bytes:,}")
    if not problems and not _verified_before(manifest, folder_uri, found):
        uris = [storage.join(folder_uri, shard.path) for shard in manifest.shards]
        with ThreadPoolExecutor(HASH_THREADS) as threads:  # reading and hashing both leave the interpreter
            for shard, digest in zip(manifest.shards, threads.map(storage.sha256, uris), strict=True):
                if digest != shard.sha256:
                    problems.append(f"{shard.path}: contents changed (sha256 differs)")
        if not problems:
            record_verified(manifest, folder_uri)
    if problems:
        raise CorruptArtefactError(
            f"{len(problems)} of {len(manifest.shards)} shards in {folder_uri} are damaged: {'; '.join(problems)}. "
            "Remove the folder and run the reshard step again"
        )


def record_verified(manifest: ShardManifest, folder_uri: str) -> None:
    """Remember that the shards, as they lie there now, are those of the manifest; call it when all were hashed."""
    state = _state(manifest, _list_shards(manifest, folder_uri))
    if state is not None:
        try:
            storage.write_atomic(storage.join(folder_uri, VERIFIED_NAME), json.dumps({"schema_version": 1, "state": state}))
        except OSError as error:  # a folder that may only be read is hashed at every start
            logger.info("cannot note that the shards in %s are verified: %s", folder_uri, error)


def is_verified(manifest: ShardManifest, folder_uri: str) -> bool:
    """Whether the shards, as they lie there, are those that were hashed before."""
    return _verified_before(manifest, folder_uri, _list_shards(manifest, folder_uri))


def _verified_before(manifest: ShardManifest, folder_uri: str, found: dict[str, storage.Listed]) -> bool:
    uri = storage.join(folder_uri, VERIFIED_NAME)
    state = _state(manifest, found)
    if state is None or not storage.exists(uri):
        return False
    try:
        return bool(json.loads(storage.read_bytes(uri)).get("state") == state)
    except (ValueError, AttributeError):
        return False  # a damaged marker counts for nothing


def _list_shards(manifest: ShardManifest, folder_uri: str) -> dict[str, storage.Listed]:
    """What lies in the folders of the shards, by path relative to the manifest."""
    folders = {posixpath.dirname(shard.path) for shard in manifest.shards}
    return {
        posixpath.join(folder, name): listed
        for folder in sorted(folders)
        for name, listed in storage.list_details(storage.join(folder_uri, folder) if folder else folder_uri).items()
    }


def _state(manifest: ShardManifest, found: dict[str, storage.Listed]) -> str | None:
    """Hash over the shards as the store describes them; none where it tells no version of one object from another."""
    versions = [found[shard.path].version if shard.path in found else None for shard in manifest.shards]
    if None in versions:
        return None
    shards = [
        [shard.path, shard.bytes, shard.sha256, version] for shard, version in zip(manifest.shards, versions, strict=True)
    ]
    return content_hash({"shards": shards})
