"""The manifest of training shards: what curation hands to training.

A shard is a WebDataset tar; sample `i` of it starts at byte `offsets[i]` (its first tar header) and ends where the next one
starts.  The manifest is written after every shard, so its presence means that all of them are whole.
"""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from infra import storage
from infra.config import StrictModel
from infra.errors import BadInputError, CorruptArtefactError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1


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

    @model_validator(mode="after")
    def _offsets_match(self) -> "ShardEntry":
        if len(self.offsets) != self.samples:
            raise ValueError(f"{self.path}: {len(self.offsets)} offsets for {self.samples} samples")
        if any(a >= b for a, b in zip(self.offsets, [*self.offsets[1:], self.bytes], strict=True)):
            raise ValueError(f"{self.path}: offsets do not increase within {self.bytes} bytes")
        return self


class ShardManifest(StrictModel):
    schema_version: Literal[1] = 1
    shards: list[ShardEntry]
    num_samples: NonNegativeInt
    lineage: dict[str, Any] = Field(default_factory=dict)
    """What the shards were made from: inputs, rules, counts by reason, versions."""

    @model_validator(mode="after")
    def _counts_match(self) -> "ShardManifest":
        if (total := sum(shard.samples for shard in self.shards)) != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, the shards hold {total}")
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
    storage.check_schema_version(uri, newest=SCHEMA_VERSION)
    return storage.read_model(uri, ShardManifest)


def verify_shards(manifest: ShardManifest, folder_uri: str) -> None:
    """Compare size and SHA-256 of every shard with the manifest.

    Raises:
        CorruptArtefactError: a shard is missing, truncated or changed; all of them are named.
    """
    problems = []
    for shard in manifest.shards:
        uri = storage.join(folder_uri, shard.path)
        if not storage.exists(uri):
            problems.append(f"{shard.path}: missing")
        elif (found := storage.size(uri)) != shard.bytes:
            problems.append(f"{shard.path}: {found:,} bytes, expected {shard.bytes:,}")
        elif storage.sha256(uri) != shard.sha256:
            problems.append(f"{shard.path}: contents changed (sha256 differs)")
    if problems:
        raise CorruptArtefactError(
            f"{len(problems)} of {len(manifest.shards)} shards in {folder_uri} are damaged: {'; '.join(problems)}. "
            "Remove the folder and run the reshard step again"
        )
