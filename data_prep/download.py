"""Download a URL list: partitions fanned out as Ray tasks of our own, then an audit that every row has an outcome.

What a task does is `partition.download_partition`; Ray itself is in `fan_out.py`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

from data_prep.accounting import describe, require_all_accounted
from data_prep.audit import audit
from data_prep.fan_out import absolute, fan_out
from data_prep.partition import DownloadConfig, Partition, download_partition, shards_of
from data_prep.partition_report import PartitionReport, finished_report, gather_outcomes, report_uri
from data_prep.raw import REPORT_NAME, DownloadReport
from data_prep.url_list import UrlList, UrlListConfig, read_url_list
from infra import storage
from infra.config import content_hash
from infra.errors import BadInputError, DataLossError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def download(
    config: DownloadConfig, *, url_list_uri: str, url_columns: UrlListConfig, output_uri: str, progress: Progress
) -> DownloadReport:
    """Download every picture of a URL list; partitions that an earlier run finished are skipped.

    Ray must be connected.  `progress` is called with (rows done, rows in all).

    Raises:
        BadInputError: the list cannot be used, or the folder holds the download of another list.
        DataLossError: too few pictures came back, or a row has no outcome.  Nothing is marked done then.
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
    _require_success_rate(config, partitions, reports, output_uri)
    outcomes = gather_outcomes(partitions, output_uri)
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
    config: DownloadConfig, partitions: list[Partition], reports: dict[int, PartitionReport], output_uri: str
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
    raise DataLossError(
        f"only {downloaded:,} of {requested:,} pictures were downloaded: {downloaded / requested:.1%}, and the floor "
        f"(min_success_rate) is {config.min_success_rate:.1%}. Failed: {describe(failed)}. "
        "Check the network and the list, or lower the floor"
    )
