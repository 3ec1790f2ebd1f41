"""`hyperclip score`: how well picture and caption of every downloaded sample agree, to a model of ours.

    FILE                      parquet: uid, score; its metadata say which model gave them
    FILE.parts/bundle/        the model, where every machine of the cluster can read it
    FILE.parts/00000.parquet  scores of one raw shard; gone when FILE is there

The score is the cosine of the neutral image features and the features of the caption; null where the picture does not decode.
Shapes: B pictures, D embedding.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_prep.curation.captions import clean_caption
from data_prep.fan_out import TaskConfig, absolute, fan_out
from data_prep.partition_report import write_table
from data_prep.raw import DownloadReport, RawSample, RawShard, read_download_report, read_raw_shard
from infra import artefacts, images, storage
from infra.config import content_hash
from infra.errors import BadInputError, CorruptArtefactError
from training.bundle import BUNDLE_NAME, Bundle, load_bundle
from training.preprocess import preprocess

BATCH = 64
SCHEMA = pa.schema([("uid", pa.string()), ("score", pa.float32())])
_MADE_FROM = b"made_from"


class Scored(NamedTuple):
    samples: int
    without: int
    """Whose picture does not decode."""
    damaged: list[str]
    """What is wrong with the shards that nothing was read of."""


class ScoredShard(NamedTuple):
    number: int
    samples: int
    damage: str | None = None


def score_samples(
    raw_uri: str,
    output_uri: str,
    *,
    bundle_folder: Path,
    clean_captions: bool,
    tasks: TaskConfig,
    progress: Callable[[int, int], None],
) -> Scored:
    """Score every sample of a finished download or import; shards that an earlier call scored are not scored again.

    Ray must be connected.  `progress` is called with (samples scored, samples in all).

    Args:
        clean_captions: score what curation would make of the captions.

    Raises:
        BadInputError: the output is there already, or the download has not finished.
    """
    raw_uri, output_uri = absolute(raw_uri), absolute(output_uri)
    if storage.exists(output_uri):
        raise BadInputError(f"{output_uri} is there already; choose another file, or remove it")
    raw = read_download_report(raw_uri)
    parts_uri, bundle_uri = f"{output_uri}.parts", f"{output_uri}.parts/bundle"
    artefacts.publish_folder(bundle_folder, bundle_uri, last=BUNDLE_NAME)
    digest = load_bundle(bundle_folder).digest
    made_from = {
        number: content_hash({"shard": shard.model_dump(), "bundle": digest, "clean_captions": clean_captions})
        for number, shard in enumerate(raw.shards)
        if shard.samples
    }
    missing = [number for number, expected in made_from.items() if _made_from(_part(parts_uri, number)) != expected]
    done = sum(raw.shards[number].samples for number in made_from.keys() - set(missing))
    progress(done, raw.downloaded)
    damaged: dict[int, str] = {}
    arguments = [
        (raw_uri, number, raw.shards[number], bundle_uri, clean_captions, _part(parts_uri, number), made_from[number])
        for number in missing
    ]
    for found in fan_out(score_shard, arguments, tasks):
        done += found.samples
        if found.damage is not None:
            damaged[found.number] = found.damage
        progress(done, raw.downloaded)
    provenance = {"schema_version": 1, "bundle_digest": digest, "clean_captions": clean_captions, "raw": raw_uri}
    whole = [_part(parts_uri, number) for number in made_from if number not in damaged]
    samples, without = _gather(whole, output_uri, provenance, raw)
    storage.remove(parts_uri)
    return Scored(samples, without, [damaged[number] for number in sorted(damaged)])


def score_shard(
    raw_uri: str, number: int, shard: RawShard, bundle_uri: str, clean_captions: bool, part_uri: str, made_from: str
) -> ScoredShard:
    """Write the scores of one raw shard, or say what is wrong with it."""
    bundle = _bundle(bundle_uri)
    rows: list[dict[str, object]] = []
    try:
        found = read_raw_shard(raw_uri, shard)
        while samples := list(islice(found, BATCH)):
            captions = [str(sample.record.get("caption") or "") for sample in samples]
            scores = score_pairs(bundle, samples, [clean_caption(text) for text in captions] if clean_captions else captions)
            rows += [{"uid": sample.record["uid"], "score": score} for sample, score in zip(samples, scores, strict=True)]
    except (CorruptArtefactError, KeyError) as error:
        return ScoredShard(number, shard.samples, str(error))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_table(table.replace_schema_metadata({_MADE_FROM: made_from.encode()}), part_uri)
    return ScoredShard(number, shard.samples)


@torch.no_grad()
def score_pairs(bundle: Bundle, samples: Sequence[RawSample], captions: list[str]) -> list[float | None]:
    """The cosine of each picture and its caption; None where the picture does not decode."""
    pictures, places = [], []
    for place, sample in enumerate(samples):
        try:
            pictures.append(preprocess(sample.image, bundle.preprocess))
            places.append(place)
        except images.ImageError:
            continue
    found: list[float | None] = [None] * len(samples)
    if pictures:
        image_features = bundle.model.encode_image(torch.from_numpy(np.stack(pictures)))  # (B, D)
        text_features = bundle.model.encode_text(bundle.tokenizer([captions[place] for place in places]))  # (B, D)
        for place, score in zip(places, (image_features * text_features).sum(dim=1).tolist(), strict=True):
            found[place] = score
    return found


@lru_cache(maxsize=1)
def _bundle(uri: str) -> Bundle:
    """Loaded once in a worker."""
    with storage.localized(uri) as folder:
        return load_bundle(folder)


def _part(parts_uri: str, number: int) -> str:
    return storage.join(parts_uri, f"{number:05d}.parquet")


def _made_from(uri: str) -> str | None:
    if not storage.exists(uri):
        return None
    with storage.open_read(uri) as file:
        return ((pq.read_schema(file).metadata or {}).get(_MADE_FROM) or b"").decode()


def _tables(uris: list[str]) -> Iterator[pa.Table]:
    for uri in uris:
        with storage.open_read(uri) as file:
            yield pq.read_table(file)


def _gather(uris: list[str], output_uri: str, provenance: dict[str, object], raw: DownloadReport) -> tuple[int, int]:
    """One file of all parts; returns samples, and samples without a score."""
    schema = SCHEMA.with_metadata({"hyperclip": json.dumps(provenance), "samples": str(raw.downloaded)})
    samples = without = 0
    with storage.staged_file(output_uri) as path, pq.ParquetWriter(path, schema) as writer:
        for table in _tables(uris):
            writer.write_table(table.cast(SCHEMA).replace_schema_metadata(schema.metadata))
            samples, without = samples + table.num_rows, without + table["score"].null_count
    return samples, without
