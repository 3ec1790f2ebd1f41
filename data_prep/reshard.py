"""Training shards: the kept samples, shuffled once, in WebDataset tars with the byte offset of every sample.

The same keep list and settings give the same bytes: order, keys and tar headers depend on nothing else, whichever tasks wrote
them and however often they were started again.
"""

import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import PositiveInt

from data_prep.accounting import describe, require_all_accounted
from data_prep.curation.curate import REPORT_NAME as CURATE_REPORT_NAME
from data_prep.fan_out import TaskConfig, absolute, fan_out
from data_prep.kept_samples import KeptSamples, cut, kept_samples
from data_prep.manifest import MANIFEST_NAME, VERIFIED_NAME, ShardEntry, ShardManifest, record_verified, write_manifest
from data_prep.raw import REMOVED, DownloadReport, read_download_report
from data_prep.raw import REPORT_NAME as RAW_REPORT_NAME
from data_prep.training_shard import NOTES, shard_name, write_training_shard
from infra import storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, DataLossError

PACKAGES = ("hyperclip", "img2dataset", "pillow", "pyarrow", "webdataset")
"""Whose versions the manifest names."""
_DEFAULT_MAX_SHARD_BYTES = 1 << 30


class ReshardConfig(StrictModel):
    """How training shards are cut."""

    samples_per_shard: PositiveInt = 1000
    max_shard_bytes: PositiveInt = _DEFAULT_MAX_SHARD_BYTES
    """Of the pictures in a shard: it is put together in memory.  Headers and captions come on top, about 2 KB a sample."""
    seed: int = 0
    """Of the order of the samples."""
    tasks: TaskConfig = TaskConfig()
    """One task a shard."""

    def identity(self) -> dict[str, Any]:
        """What decides the result; shards that were written before there was a bound on bytes keep their address."""
        bounded = self.max_shard_bytes != _DEFAULT_MAX_SHARD_BYTES
        return self.model_dump(mode="json", exclude={"tasks"} if bounded else {"tasks", "max_shard_bytes"})


def reshard(
    config: ReshardConfig, *, raw_uri: str, keep_list_uri: str, output_uri: str, progress: Callable[[int, int], None]
) -> ShardManifest:
    """Write the kept samples into new shards, the manifest last; shards that an attempt before wrote whole are kept.

    Ray must be connected.  `progress` is called with (samples written, samples in all).

    Raises:
        BadInputError: there is no keep list, or it keeps nothing.
        CorruptArtefactError: a raw shard does not hold the bytes that the keep list names; the file is named.
        DataLossError: requested samples are not the kept, the dropped and the failed together.
    """
    raw_uri, output_uri = absolute(raw_uri), absolute(output_uri)
    raw = read_download_report(raw_uri)
    with kept_samples(keep_list_uri) as kept:
        _require_none_vanished(raw, kept, keep_list_uri)
        order = kept.shuffled(config.seed)
        runs = cut(kept.image_bytes()[order], max_samples=config.samples_per_shard, max_bytes=config.max_shard_bytes)
        _clear(output_uri, num_shards=len(runs))
        arguments = _arguments(kept, order, runs, raw_uri=raw_uri, output_uri=output_uri)
        entries: dict[str, ShardEntry] = {}
        done = 0
        progress(0, len(kept))
        for entry in fan_out(write_training_shard, arguments, config.tasks):
            entries[entry.path] = entry
            done += entry.samples
            progress(done, len(kept))
        if done != len(kept):
            raise DataLossError(f"{len(kept):,} samples are kept, {done:,} were written")
        manifest = ShardManifest(
            shards=[entries[shard_name(number)] for number in range(len(runs))],
            num_samples=done,
            sources=kept.sources,
            lineage=_lineage(config, raw, kept, raw_uri=raw_uri, keep_list_uri=keep_list_uri),
        )
    write_manifest(manifest, output_uri)
    record_verified(manifest, output_uri)  # every shard was read back and hashed
    storage.remove(storage.join(output_uri, NOTES))
    return manifest


def _require_none_vanished(raw: DownloadReport, kept: KeptSamples, keep_list_uri: str) -> None:
    dropped = kept.dropped
    if not len(kept):
        raise BadInputError(
            f"{keep_list_uri} keeps none of {dropped.total():,} samples (dropped: {describe(dropped)}): "
            "there is nothing to train on"
        )
    # what was removed on request after curation is among the failed of the raw shards by now
    curated = Counter({reason: count for reason, count in dropped.items() if reason != REMOVED})
    require_all_accounted("curation", seen=raw.downloaded, out=len(kept), lost=curated)
    require_all_accounted("the whole preparation", seen=raw.requested, out=len(kept), lost=Counter(raw.failed) + curated)


def _arguments(
    kept: KeptSamples, order: np.ndarray, runs: list[tuple[int, int]], *, raw_uri: str, output_uri: str
) -> Iterator[tuple[Any, ...]]:
    """One at a time: the rows of all shards together may not fit into memory."""
    for number, (start, end) in enumerate(runs):
        yield number, kept.take(order[start:end]), kept.sources, raw_uri, output_uri


def _clear(output_uri: str, *, num_shards: int) -> None:
    """Take away what an earlier run left and this one will not write; first the manifest: without it the rest is nothing."""
    for name in (MANIFEST_NAME, VERIFIED_NAME):
        storage.remove(storage.join(output_uri, name))
    wanted = {shard_name(number) for number in range(num_shards)}
    for uri in storage.list_files(output_uri, suffix=".tar"):
        if uri.rpartition("/")[2] not in wanted:
            storage.remove(uri)
    storage.remove_staged(output_uri)


def _lineage(
    config: ReshardConfig, raw: DownloadReport, kept: KeptSamples, *, raw_uri: str, keep_list_uri: str
) -> dict[str, Any]:
    """What the shards were made from: inputs with their hashes, the rules they went through, counts by reason, versions."""
    curate_report = storage.join(keep_list_uri.rpartition("/")[0], CURATE_REPORT_NAME)
    rules = json.loads(storage.read_bytes(curate_report))["lineage"] if storage.exists(curate_report) else None
    return {
        "config": config.identity(),
        "config_hash": content_hash(config.identity()),
        "samples_hash": kept.samples_hash,
        "requested": raw.requested,
        "failed": raw.failed,
        "dropped": dict(sorted(kept.dropped.items())),
        "inputs": {
            "raw": {"uri": raw_uri, "sha256": storage.sha256(storage.join(raw_uri, RAW_REPORT_NAME))},
            "keep_list": {"uri": keep_list_uri, "sha256": storage.sha256(keep_list_uri)},
        },
        "download": raw.lineage,
        "curation": rules,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
