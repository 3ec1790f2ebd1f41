"""One partition of a URL list through img2dataset's Reader and Downloader, in this process, behind our opener.

The only file that imports img2dataset.  Its own `download()` starts processes that an installed opener does not reach,
which is why its two classes are run here.  Everything is a plain function: Ray comes in with `download.py`.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt

from data_prep.accounting import require_all_accounted
from data_prep.fan_out import TaskConfig
from data_prep.fetch_policy import FetchPolicy
from data_prep.opener import HardenedOpener, installed, sites_of_process
from data_prep.outcomes import collect_outcomes
from data_prep.partition_report import PartitionReport, finished_report, report_uri, write_finished
from data_prep.raw import RawShard
from infra import storage
from infra.config import StrictModel, content_hash
from infra.errors import DataLossError

logger = logging.getLogger(__name__)

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}  # what img2dataset imports would phone home

CARRIED_COLUMNS = ["row", "uid", "captions", "concept", "group", "source", "licence"]
SHARD_NAME_DIGITS = 5
_WITHOUT_EFFECT = {"threads", "min_success_rate", "tasks"}


class DownloadConfig(StrictModel):
    """How a URL list is downloaded."""

    samples_per_shard: PositiveInt = 1000
    """Rows of the list a raw shard covers, failed ones included."""
    samples_per_partition: PositiveInt = 5000
    """Rows a Ray task downloads: what is done again when a task dies."""
    threads: PositiveInt = 32
    """Requests a task has under way at once."""
    resize: PositiveInt | None = None
    """Shorter side in pixels, re-encoded as JPEG on white, never enlarged; None stores every picture as received."""
    retries: NonNegativeInt = 1
    """More attempts after a passing failure (timeout, connection, DNS, truncated, 429, 5xx), with growing waits."""
    min_success_rate: float = Field(default=0.5, ge=0, le=1)
    """Below it the step fails: something is wrong with the network or the list."""
    policy: FetchPolicy = FetchPolicy()
    tasks: TaskConfig = TaskConfig()
    """How the partitions are run."""

    def fingerprint(self) -> str:
        """Hash of what decides the result; threads and the like do not."""
        return content_hash(self.model_dump(mode="json", exclude=_WITHOUT_EFFECT))


class Partition(NamedTuple):
    number: int
    first_shard: int
    """Number of its first shard: shard numbers are unique over the whole download."""
    table: pa.Table
    """Rows of the URL list, of `URL_LIST_SCHEMA`."""

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.table.to_pydict(), ensure_ascii=False).encode()).hexdigest()


def download_partition(partition: Partition, config: DownloadConfig, *, output_uri: str) -> PartitionReport:
    """Download the pictures of a partition; does nothing when that is done, and starts afresh when it was left half-done.

    Raises:
        DataLossError: a row came back without an outcome, or img2dataset did not go through the opener.
        CorruptArtefactError: a shard could not be read back.
    """
    if done := finished_report(partition, config, output_uri=output_uri):
        return done
    started = time.monotonic()
    folder = storage.join(output_uri, "shards", partition.name)
    storage.remove(report_uri(output_uri, partition))
    storage.remove(folder)
    storage.make_folder(folder)
    opener = HardenedOpener(config.policy, retries=config.retries, sites=sites_of_process(config.policy))
    tryable = partition.table.filter(pc.is_null(partition.table["url_problem"]))
    # img2dataset verifies hashes for a whole file of URLs or not at all
    with_hash, without_hash = tryable.filter(pc.is_valid(tryable["sha256"])), tryable.filter(pc.is_null(tryable["sha256"]))
    with installed(opener), contextlib.redirect_stdout(io.StringIO()) as printed:
        _refuse_other_ways_out(opener)
        shard = _run_img2dataset(with_hash, config, folder=folder, first_shard=partition.first_shard, verify=True)
        _run_img2dataset(without_hash, config, folder=folder, first_shard=shard, verify=False)
    logger.debug("img2dataset said: %s", printed.getvalue())
    if len(opener.records) < tryable.num_rows:
        raise DataLossError(
            f"partition {partition.number}: {tryable.num_rows:,} URLs, but {len(opener.records):,} went through the opener"
        )
    shards = _read_back_shards(output_uri, folder)
    outcomes = collect_outcomes(
        partition.table, shards, opener.records, output_uri=output_uri, folder=folder, max_pixels=config.policy.max_pixels
    )
    report = _report(partition, config, shards, outcomes, seconds=time.monotonic() - started)
    write_finished(partition, report, outcomes, output_uri=output_uri)
    return report


def shards_of(num_rows: int, samples_per_shard: int) -> int:
    """Shard numbers a partition may use: rows with and without a hash are cut separately, so one more than the quotient."""
    return -(-num_rows // samples_per_shard) + 1


def _run_img2dataset(table: pa.Table, config: DownloadConfig, *, folder: str, first_shard: int, verify: bool) -> int:
    """Download the rows of a table into shards numbered from `first_shard`; returns the number after the last."""
    if not table.num_rows:
        return first_shard
    from img2dataset.downloader import Downloader
    from img2dataset.reader import Reader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    scratch = Path(tempfile.mkdtemp(prefix="hyperclip-urls-"))
    try:
        source = scratch / "urls.parquet"
        pq.write_table(table, source)
        reader = Reader(
            url_list=str(source),
            input_format="parquet",
            url_col="url",
            caption_col="caption",
            verify_hash_col="sha256" if verify else None,
            verify_hash_type="sha256" if verify else None,
            save_additional_columns=CARRIED_COLUMNS,
            number_sample_per_shard=config.samples_per_shard,
            done_shards=set(),
            tmp_path=str(scratch),
            start_shard_id=first_shard,
        )
        downloader = Downloader(
            sample_writer_class=WebDatasetSampleWriter,
            resizer=Resizer(
                image_size=config.resize or 256,
                resize_mode="keep_ratio" if config.resize else "no",
                resize_only_if_bigger=True,
                disable_all_reencoding=config.resize is None,
            ),
            thread_count=min(config.threads, table.num_rows),
            save_caption=True,
            extract_exif=False,
            output_folder=str(storage.local_path(folder)) if storage.is_local(folder) else folder,
            column_list=reader.column_list,
            timeout=config.policy.timeout_s,
            number_sample_per_shard=config.samples_per_shard,
            oom_shard_count=SHARD_NAME_DIGITS,
            compute_hash="sha256",
            verify_hash_type="sha256" if verify else None,
            encode_format="jpg",
            retries=0,  # the opener retries, and only what may pass
            user_agent_token=None,
            disallowed_header_directives=None,  # the opener has looked, before it read the body
        )
        shard = first_shard
        for shard, urls in reader:
            downloader.download_shard((shard, urls))  # not `downloader(...)`, which swallows every exception
        return shard + 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_other_ways_out(opener: HardenedOpener) -> None:
    """One request through img2dataset's own function to an address that the opener refuses; it must arrive there.

    Raises:
        DataLossError: it did not: this version of img2dataset fetches by another way, past every rule.
    """
    from img2dataset.downloader import download_image

    before = len(opener.records)
    _, _, message = download_image((0, "http://0.0.0.0:1/"), 1, None, None)
    if len(opener.records) != before + 1 or not str(message).startswith("[forbidden_address]"):
        raise DataLossError(
            f"img2dataset does not fetch through the opener ({message}); install the version that pyproject.toml pins"
        )
    opener.records.clear()


def _read_back_shards(output_uri: str, folder: str) -> list[RawShard]:
    relative = folder.removeprefix(output_uri).strip("/")
    shards = []
    for stats_uri in storage.list_files(folder, suffix="_stats.json"):
        name = stats_uri.rpartition("/")[2].removesuffix("_stats.json") + ".tar"
        uri = storage.join(folder, name)
        successes = json.loads(storage.read_bytes(stats_uri))["successes"]
        shards.append(
            RawShard(path=f"{relative}/{name}", samples=successes, bytes=storage.size(uri), sha256=storage.sha256(uri))
        )
    return shards


def _report(
    partition: Partition, config: DownloadConfig, shards: list[RawShard], outcomes: list[dict[str, Any]], *, seconds: float
) -> PartitionReport:
    failed: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        if outcome["state"] == "failed":
            failed[outcome["reason"]] += 1
    downloaded = [outcome for outcome in outcomes if outcome["state"] == "downloaded"]
    require_all_accounted(
        f"download of partition {partition.number}", seen=partition.table.num_rows, out=len(downloaded), lost=failed
    )
    return PartitionReport(
        partition=partition.number,
        requested=partition.table.num_rows,
        downloaded=len(downloaded),
        failed=dict(sorted(failed.items())),
        bytes=sum(outcome["bytes"] for outcome in downloaded),
        seconds=seconds,
        shards=shards,
        config_hash=config.fingerprint(),
        rows_hash=partition.fingerprint(),
    )
