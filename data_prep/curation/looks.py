"""Looking at raw shards: every picture decoded and every caption measured once, one parquet file of measurements a shard.

    OUTPUT/looks/00000.parquet   a row per sample of the first raw shard, in the order of the list; whole or absent
    OUTPUT/looks/damaged.parquet a row per sample of the shards that cannot be read

A look decides nothing: rules (`rules.py`) read the measurements.  A file carries what it was measured from and how, so that a
curation that was killed goes on with the shards that have none.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.curation.captions import clean_caption
from data_prep.curation.dedup import perceptual_hash
from data_prep.curation.language import detect_language
from data_prep.partition_report import write_table
from data_prep.raw import RawSample, RawShard, read_raw_shard, sized_shard
from infra import images, storage
from infra.config import StrictModel, content_hash
from infra.errors import CorruptArtefactError

LOOKS = "looks"
DAMAGED_NAME = "damaged.parquet"
DAMAGED = "damaged_shard"
VERSION = 1
"""Raise it when the same picture or caption would be measured otherwise."""
_MEASURED = b"measured"
_TEXTS = ("caption", "concept", "group", "source", "licence")

LOOK_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("uid", pa.string()),
        ("error", pa.string()),  # why the picture cannot be used; null when it decodes
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),  # null where it would say nothing
        ("caption", pa.string()),  # cleaned where that is asked for
        ("captions", pa.list_(pa.string())),
        ("caption_original", pa.string()),  # null where cleaning changed nothing
        ("caption_characters", pa.int32()),
        ("caption_words", pa.int32()),
        ("language", pa.string()),  # the most probable one
        ("language_score", pa.float32()),  # probability of the one that is asked for
        ("concept", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("shard", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
    ]
)


class LookConfig(StrictModel):
    """What is measured; the rules' bounds are no part of it."""

    max_pixels: int
    clean_captions: bool
    language: str | None
    """Whose probability is measured."""


class Looked(NamedTuple):
    """What came of one raw shard."""

    number: int
    """Place of the shard in the report."""
    samples: int
    damage: str | None = None
    """Why the shard cannot be read; nothing of it is used then."""


def looks_uri(output_uri: str, number: int) -> str:
    return storage.join(output_uri, LOOKS, f"{number:05d}.parquet")


def look_at_shard(raw_uri: str, number: int, shard: RawShard, config: LookConfig, output_uri: str) -> Looked:
    """Measure every sample of a raw shard and write the file, or say what is wrong with the shard.

    Nothing of a damaged shard is used: who changed one byte of it may have changed others.
    """
    try:
        with _verified(raw_uri, shard) as folder:
            samples = [_look_at(sample, shard, config) for sample in read_raw_shard(folder, shard)]
        table = _table(samples, shard)
    except CorruptArtefactError as error:
        return Looked(number, shard.samples, str(error))
    write_table(table.replace_schema_metadata({_MEASURED: _fingerprint(shard, config).encode()}), looks_uri(output_uri, number))
    return Looked(number, shard.samples)


def is_looked_at(number: int, shard: RawShard, config: LookConfig, output_uri: str) -> bool:
    """Whether the file of this very shard, measured this way, is there."""
    uri = looks_uri(output_uri, number)
    if not storage.exists(uri):
        return False
    try:
        with storage.open_read(uri) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):
        return False
    return bool(metadata.get(_MEASURED) == _fingerprint(shard, config).encode())


def num_looked_at(output_uri: str) -> int:
    """Shards that attempts before have finished, by the names of their files alone."""
    return sum(not uri.endswith(DAMAGED_NAME) for uri in storage.list_files(storage.join(output_uri, LOOKS), suffix=".parquet"))


def _fingerprint(shard: RawShard, config: LookConfig) -> str:
    return content_hash({"version": VERSION, "shard": shard.model_dump(), "config": config.model_dump()})


@contextmanager
def _verified(raw_uri: str, shard: RawShard) -> Iterator[str]:
    """The raw folder, or a copy of it with this shard alone where it is remote, once the shard's bytes are those reported."""
    uri = sized_shard(raw_uri, shard)
    with tempfile.TemporaryDirectory(prefix="hyperclip-") as temporary:
        local = storage.is_local(uri)
        copy = Path(temporary) / shard.path
        if not local:
            copy.parent.mkdir(parents=True)
        digest = hashlib.sha256()
        with storage.open_read(uri) as source, (Path("/dev/null") if local else copy).open("wb") as target:
            while block := source.read(storage.READ_BLOCK_BYTES):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != shard.sha256:
            raise CorruptArtefactError(f"{uri} was changed: its sha256 differs from its report's")
        yield raw_uri if local else temporary


def _look_at(sample: RawSample, shard: RawShard, config: LookConfig) -> dict[str, Any]:
    record = _checked(sample, shard)
    looks: dict[str, Any] = {name: record.get(name) for name in ("uid", "row", "captions", *_TEXTS)}
    looks |= {"sha256": hashlib.sha256(sample.image).hexdigest(), "shard": shard.path}
    looks |= {"image_offset": sample.image_offset, "image_bytes": len(sample.image)}
    looks |= _caption_looks(record, config)
    try:
        info = images.probe(sample.image, max_pixels=config.max_pixels)
        looks |= {"width": info.width, "height": info.height, "format": info.format}
        pixels = images.decode(sample.image, max_pixels=config.max_pixels)  # what does not decode must never reach training
        looks["phash"] = perceptual_hash(pixels)
    except images.ImageError as error:
        looks["error"] = error.reason
    return looks


def _caption_looks(record: dict[str, Any], config: LookConfig) -> dict[str, Any]:
    caption, found = record.get("caption"), {}
    if config.clean_captions:
        cleaned = clean_caption(caption or "")
        found = {"caption": cleaned, "caption_original": caption if caption != cleaned else None}
        if record.get("captions") is not None:
            found["captions"] = [text for text in map(clean_caption, record["captions"]) if text]
        caption = cleaned
    text = (caption or "").strip()
    found |= {"caption_characters": len(text), "caption_words": len(text.split())}
    if config.language:
        found |= detect_language(text, asked=config.language)._asdict()
    return found


def _checked(sample: RawSample, shard: RawShard) -> dict[str, Any]:
    """The record, once its values are of the kinds that they must be."""
    record = sample.record
    row, captions = record.get("row"), record.get("captions")
    problems = [name for name in _TEXTS if not isinstance(record.get(name), str | None)]
    if not isinstance(record.get("uid"), str) or not record["uid"]:
        problems.append("uid")
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < 1 << 62:
        problems.append("row")
    if captions is not None and not (isinstance(captions, list) and all(isinstance(text, str) for text in captions)):
        problems.append("captions")
    if not problems:
        try:
            json.dumps([record.get(name) for name in ("uid", "captions", *_TEXTS)], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            problems.append("text that is no Unicode")
    if problems:
        raise CorruptArtefactError(f"{shard.path}: the JSON of sample {sample.key!r} has a bad {' and '.join(problems)}")
    return record


def _table(samples: list[dict[str, Any]], shard: RawShard) -> pa.Table:
    """In the order of the list: img2dataset's tars are in the order in which the pictures came."""
    if len({sample["row"] for sample in samples}) != len(samples) or len({sample["uid"] for sample in samples}) != len(samples):
        raise CorruptArtefactError(f"{shard.path} holds a row or a uid twice")
    return pa.Table.from_pylist(sorted(samples, key=lambda sample: sample["row"]), schema=LOOK_SCHEMA)
