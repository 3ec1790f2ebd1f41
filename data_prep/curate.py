"""Curation: look at every downloaded picture once, and write down which to keep and why the others go.

The keep list has a row for every sample that came in, kept or not, in the order of the URL list.  It also says where the
bytes of each picture lie, so that resharding reads nothing else of the raw shards.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt

from data_prep.accounting import require_all_accounted
from data_prep.dedup import DedupConfig, exact_duplicates, near_duplicates, perceptual_hash
from data_prep.fan_out import TaskConfig, absolute, fan_out
from data_prep.filters import FilterConfig, filter_reason
from data_prep.raw import RawShard, read_download_report, read_raw_shard
from infra import images, storage
from infra.config import StrictModel, content_hash

KEEP_LIST_NAME = "keep.parquet"
REPORT_NAME = "curate.json"

KEEP_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # null when kept
        ("duplicate_of", pa.string()),  # uid of the one that was kept
        ("row", pa.int64()),  # place in the URL list
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("concept", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("shard", pa.string()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
    ],
    metadata={"schema_version": "1"},
)


class CurateConfig(StrictModel):
    """Which of the downloaded samples are kept."""

    filters: FilterConfig = FilterConfig()
    dedup: DedupConfig = DedupConfig()
    max_pixels: int = Field(default=images.MAX_PIXELS, gt=0)
    tasks: TaskConfig = TaskConfig()
    """One task a raw shard."""


class CurateReport(StrictModel):
    """`seen` = `kept` + all of `dropped`, by reason."""

    schema_version: Literal[1] = 1
    seen: NonNegativeInt
    kept: NonNegativeInt
    dropped: dict[str, int]
    seconds: float
    lineage: dict[str, Any] = Field(default_factory=dict)


def curate(config: CurateConfig, *, raw_uri: str, output_uri: str, progress: Callable[[int, int], None]) -> CurateReport:
    """Write the keep list of a finished download or import.  Ray must be connected.

    `progress` is called with (samples looked at, samples in all).

    Raises:
        BadInputError: the download has not finished.
        CorruptArtefactError: a raw shard is damaged.
        DataLossError: the counts do not add up.
    """
    started = time.monotonic()
    raw_uri = absolute(raw_uri)
    report_uri = storage.join(output_uri, REPORT_NAME)
    storage.remove(report_uri)
    raw = read_download_report(raw_uri)
    samples: list[dict[str, Any]] = []
    progress(0, raw.downloaded)
    for found in fan_out(look_at_shard, [(raw_uri, shard, config) for shard in raw.shards if shard.samples], config.tasks):
        samples += found
        progress(len(samples), raw.downloaded)
    samples.sort(key=lambda sample: (sample["row"], sample["uid"]))
    _drop_duplicates(samples, config.dedup)
    kept = sum(sample["keep"] for sample in samples)
    dropped = Counter(sample["reason"] for sample in samples if not sample["keep"])
    require_all_accounted("curation", seen=raw.downloaded, out=kept, lost=dropped)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(samples, schema=KEEP_SCHEMA), buffer)
    storage.write_atomic(storage.join(output_uri, KEEP_LIST_NAME), buffer.getvalue().to_pybytes())
    report = CurateReport(
        seen=raw.downloaded,
        kept=kept,
        dropped=dict(sorted(dropped.items())),
        seconds=time.monotonic() - started,
        lineage={"config": config.model_dump(mode="json"), "config_hash": content_hash(config)},
    )
    storage.write_atomic(report_uri, report.model_dump_json(indent=1))
    return report


def look_at_shard(raw_uri: str, shard: RawShard, config: CurateConfig) -> list[dict[str, Any]]:
    """Decode, measure, hash and filter every sample of a raw shard; duplicates are found later, over all shards."""
    return [
        _look_at(sample.image, sample.image_offset, sample.record, shard, config) for sample in read_raw_shard(raw_uri, shard)
    ]


def _look_at(image: bytes, offset: int, record: dict[str, Any], shard: RawShard, config: CurateConfig) -> dict[str, Any]:
    reason: str | None = None
    looks: dict[str, Any] = {}
    try:
        info = images.probe(image, max_pixels=config.max_pixels)
        looks = {"width": info.width, "height": info.height, "format": info.format}
        pixels = images.decode(image, max_pixels=config.max_pixels)  # what does not decode must never reach training
        reason = filter_reason(config.filters, width=info.width, height=info.height, caption=record.get("caption") or "")
        if reason is None and config.dedup.max_hamming_distance is not None and (phash := perceptual_hash(pixels)) is not None:
            looks["phash"] = f"{phash:016x}"
    except images.ImageError as error:
        reason = error.reason
    carried = ("uid", "row", "caption", "captions", "concept", "group", "source", "licence")
    return {
        **{name: record.get(name) for name in carried},
        **looks,
        "keep": reason is None,
        "reason": reason,
        "sha256": hashlib.sha256(image).hexdigest(),
        "shard": shard.path,
        "image_offset": offset,
        "image_bytes": len(image),
    }


def _drop_duplicates(samples: list[dict[str, Any]], config: DedupConfig) -> None:
    """Mark duplicates among the samples still kept, exact ones first; the first in the order of the list stays."""
    kept = [sample for sample in samples if sample["keep"]]
    _mark(kept, exact_duplicates([sample["sha256"] for sample in kept]), "duplicate_exact")
    if config.max_hamming_distance is None:
        return
    kept = [sample for sample in kept if sample["keep"]]
    hashes = [int(sample["phash"], 16) if sample.get("phash") else None for sample in kept]
    concepts = [sample["concept"] for sample in kept] if config.same_concept_only else None
    _mark(kept, near_duplicates(hashes, max_distance=config.max_hamming_distance, concepts=concepts), "duplicate_perceptual")


def _mark(samples: list[dict[str, Any]], first: list[int | None], reason: str) -> None:
    for sample, place in zip(samples, first, strict=True):
        if place is not None:
            sample |= {"keep": False, "reason": reason, "duplicate_of": samples[place]["uid"]}
