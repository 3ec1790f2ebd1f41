"""Evaluation pictures in our own training shards."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from infra.config import content_hash
from infra.errors import BadInputError
from training.evaluation.evaluation_set import EvaluationSet, ReadingConfig, further_reading, object_reading
from training.shard_reader import ShardReader

COLUMNS = ("source", "licence", "group", "concept")


def shard_set(reader: ShardReader, *, readings: Mapping[str, ReadingConfig] | None = None) -> EvaluationSet:
    """All pictures of a folder of shards.

    Raises:
        BadInputError: no pictures, or a reading asks for what shards do not carry.
        CorruptArtefactError: a sample is damaged.
    """
    readings = readings or {}
    for name, reading in readings.items():
        if reading.column not in COLUMNS:
            raise BadInputError(f"reading {name!r}: shards have no column {reading.column!r}; they have {', '.join(COLUMNS)}")
    records = [reader[number][1] for number in range(len(reader))]
    if not records:
        raise BadInputError(f"{reader.folder_uri} holds no pictures")

    def stored() -> Iterator[tuple[str, bytes]]:
        for number in range(len(reader)):
            yield f"{reader.folder_uri}, sample {number}", reader[number][0]

    captions = [record.captions[0] for record in records]
    return EvaluationSet(
        name=PurePosixPath(reader.folder_uri.rstrip("/")).name,
        identity=content_hash([shard.sha256 for shard in reader.manifest.shards]),
        objects=object_reading(captions, [record.concept for record in records], [record.group for record in records]),
        further=tuple(
            further_reading(name, [getattr(record, found.column) for record in records], found.names)
            for name, found in readings.items()
        ),
        captions=tuple(captions),
        templates=None,
        stored=stored,
    )
