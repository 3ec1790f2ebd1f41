"""Download a URL list: partitions fanned out as Ray tasks of our own, then an audit that every row has an outcome.

What a task does is `partition.download_partition`; Ray itself is in `fan_out.py`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.accounting import describe, require_all_accounted
from data_prep.audit import audit
from data_prep.fan_out import absolute, fan_out
from data_prep.partition import DownloadConfig, Partition, download_partition, shards_of
from data_prep.partition_report import PartitionReport, finished_report, gather_outcomes, report_uri
from data_prep.raw import OUTCOMES_NAME, REPORT_NAME, DownloadReport
from data_prep.url_list import UrlList, UrlListConfig, read_url_list
from infra import storage
from infra.config import content_hash
from infra.errors import BadInputError, DataLossError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
MAX_NAMED_HOSTS = 5


class TooFewDownloadedError(DataLossError):
    """Fewer pictures came back than the configuration asks for."""

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.setting = setting
        """Of `DownloadConfig`: the one to look at first."""


def download(
    config: DownloadConfig, *, url_list_uri: str, url_columns: UrlListConfig, output_uri: str, progress: Progress
) -> DownloadReport:
    """Download every picture of a URL list; partitions that an earlier run finished are skipped.

    Ray must be connected.  `progress` is called with (rows done, rows in all).

    Raises:
        BadInputError: the list cannot be used, or the folder holds the download of another list.
        TooFewDownloadedError: too few pictures came back.  Nothing is marked done then.
        DataLossError: a row has no outcome.  Nor then.
    """
    started = time.monotonic()
    output_uri = absolute(output_uri)
    url_list = read_url_list(url_list_uri, url_columns)
    partitions = plan_partitions(url_list, config)
    _claim(output_uri, url_list, config)
    total, done = len(url_list), 0
    reports: dict[int, PartitionReport] = {}
    for partition in partitions:
        if report := finished_report(partition, config, output_uri=output_uri):
            reports[partition.number] = report
            done += report.requested
    skipped = len(reports)
    progress(done, total)
    arguments = [(partition, config, output_uri) for partition in partitions if partition.number not in reports]
    for report in fan_out(_download_partition, arguments, config.tasks):
        reports[report.partition] = report
        done += report.requested
        progress(done, total)
    outcomes = gather_outcomes(partitions, output_uri)  # first: they say what went wrong
    _require_success_rate(config, partitions, reports, outcomes, output_uri)
    audited = audit(url_list.table, outcomes)
    require_all_accounted("download", seen=total, out=audited.downloaded, lost=audited.failed)
    result = DownloadReport(
        requested=total,
        downloaded=audited.downloaded,
        failed=audited.failed,
        bytes=audited.bytes,
        seconds=time.monotonic() - started,
        skipped_partitions=skipped,
        shards=[shard for index in sorted(reports) for shard in reports[index].shards],
        lineage={"config": config.model_dump(mode="json"), "config_hash": content_hash(config), "formats": audited.formats},
    )
    storage.write_atomic(storage.join(output_uri, REPORT_NAME), result.model_dump_json(indent=1))
    return result


def plan_partitions(url_list: UrlList, config: DownloadConfig) -> list[Partition]:
    """Cut the list into partitions; each has its own range of shard numbers."""
    size = config.samples_per_partition
    stride = shards_of(size, config.samples_per_shard)
    return [
        Partition(index, index * stride, url_list.table.slice(start, size))
        for index, start in enumerate(range(0, len(url_list), size))
    ]


def _download_partition(partition: Partition, config: DownloadConfig, output_uri: str) -> PartitionReport:
    return download_partition(partition, config, output_uri=output_uri)


def _claim(output_uri: str, url_list: UrlList, config: DownloadConfig) -> None:
    """Bind an output folder to one list and one cut of it: another list in the same folder would mix two downloads."""
    uri = storage.join(output_uri, "claim.sha256")
    cut = [config.samples_per_partition, config.samples_per_shard]
    claim = content_hash({"uids": content_hash(url_list.table["uid"].to_pylist()), "cut": cut})
    if storage.exists(uri) and storage.read_bytes(uri).decode() != claim:
        raise BadInputError(
            f"{output_uri} holds the download of another URL list or another partition size; "
            "choose another output folder or remove this one"
        )
    storage.write_atomic(uri, claim)
    storage.remove(storage.join(output_uri, REPORT_NAME))  # not done until it is done again


def _require_success_rate(
    config: DownloadConfig,
    partitions: list[Partition],
    reports: dict[int, PartitionReport],
    outcomes: pa.Table,
    output_uri: str,
) -> None:
    requested = sum(report.requested for report in reports.values())
    downloaded = sum(report.downloaded for report in reports.values())
    failed: Counter[str] = Counter()
    for report in reports.values():
        failed.update(report.failed)
    if downloaded and downloaded >= config.min_success_rate * requested:
        return
    for partition in partitions:  # so that the next run tries again where it went wrong, and only there
        report = reports[partition.number]
        if report.downloaded < max(1, config.min_success_rate * report.requested):
            storage.remove(report_uri(output_uri, partition))
    told = (
        f"only {downloaded:,} of {requested:,} pictures were downloaded: {downloaded / requested:.1%}, and the floor "
        f"(min_success_rate) is {config.min_success_rate:.1%}. Failed: {describe(failed)}. "
        f"What became of each row: {storage.join(output_uri, OUTCOMES_NAME)}. "
    )
    if 2 * failed["forbidden_address"] > failed.total():
        raise TooFewDownloadedError(
            f"{told}Most of the addresses lie in a private network, from which only hosts are fetched that are named in "
            f"policy.allowed_private_hosts; the list names {_forbidden_hosts(outcomes)}",
            setting="policy.allowed_private_hosts",
        )
    raise TooFewDownloadedError(f"{told}Check the network and the list, or lower the floor", setting="min_success_rate")


def _forbidden_hosts(outcomes: pa.Table) -> str:
    """Where the forbidden rows point to, the commonest first."""
    forbidden = outcomes.filter(pc.equal(outcomes["reason"], "forbidden_address"))
    counts = Counter(urlsplit(url).netloc for url in forbidden["url"].to_pylist())
    named = [host for host, _ in counts.most_common(MAX_NAMED_HOSTS)]
    return ", ".join(named) + (f" and {len(counts) - len(named):,} more" if len(counts) > len(named) else "")
