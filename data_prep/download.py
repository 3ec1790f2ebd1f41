"""Download a URL list: a plan, its partitions fanned out as Ray tasks of our own, and rounds over what may have passed.

What a task does is `partition.download_partition`; Ray itself is in `fan_out.py`.  Of the list the driver holds nothing but the
reports of its partitions.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Literal

from pydantic import PositiveInt

from data_prep.accounting import require_all_accounted
from data_prep.download_checks import require_plausible
from data_prep.download_config import DownloadConfig
from data_prep.download_status import DownloadStatus, marked_as_begun
from data_prep.fan_out import MAX_FAILED, Failed, absolute, fan_out_each
from data_prep.partition import download_partition, may_have_passed
from data_prep.partition_report import PartitionReport, finished_report
from data_prep.raw import PARTITIONS_FOLDER, REPORT_NAME, DownloadReport, later_rounds, round_folder
from data_prep.url_list import UrlListConfig
from data_prep.url_plan import Partition, Plan, plan_url_list
from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, HyperClipError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
FINISHED_NAME = "finished_rounds.json"
MAX_NAMED_PARTITIONS = 3
_LOOK_UP_THREADS = 16
Reports = dict[int, PartitionReport]
"""Of one round, by the number of the partition."""


class FinishedRounds(StrictModel):
    """Stays where `download.json` goes while further rounds are under way: what curation may have read."""

    schema_version: Literal[1] = 1
    rounds: PositiveInt


class PartitionsFailedError(HyperClipError):
    """Partitions failed as often as they are tried; the others are done."""


def download(
    config: DownloadConfig, *, url_list_uri: str, url_columns: UrlListConfig, output_uri: str, progress: Progress
) -> DownloadReport:
    """Download every picture of a URL list; partitions and rounds that an earlier run finished are skipped.

    Ray must be connected.  `progress` is called with (rows done, rows in all, what is told of them).

    Raises:
        BadInputError: the list cannot be used, or the folder holds the download of another list.
        PartitionsFailedError: partitions failed again and again.  Nothing is marked done then, nor below.
        TooFewDownloadedError: too few pictures came back, or too many failed for a reason that points at our own side.
        DataLossError: a row has no outcome.
    """
    started = time.monotonic()
    output_uri = absolute(output_uri)
    plan = plan_url_list(
        url_list_uri,
        url_columns,
        samples_per_partition=config.samples_per_partition,
        samples_per_shard=config.samples_per_shard,
        output_uri=output_uri,
        on_rows=lambda rows: progress(rows, rows, "rows of the list read"),
    )
    finished_rounds = _begin(config, output_uri)
    rounds: list[Reports] = []
    skipped = 0
    for number in range(1, config.rounds + 1):
        partitions = list(_of_round(plan, number, rounds, output_uri))
        done = _finished(partitions, config, output_uri)
        skipped += len(done)
        missing = [partition for partition in partitions if partition.number not in done]
        if missing and number > 1 and skipped < sum(map(len, rounds)):  # what was fetched just now gets time to recover
            logger.info("round %d begins in %.0f s", number, config.round_wait_s)
            time.sleep(config.round_wait_s)
        status = DownloadStatus(config, partitions, done.values(), output_uri=output_uri, progress=progress)
        done |= _run_round(missing, config, output_uri, status)
        rounds.append(done)
    result = _report(config, plan, rounds, output_uri, finished_rounds)
    result = result.rebuilt(seconds=time.monotonic() - started, skipped_partitions=skipped)
    storage.write_atomic(storage.join(output_uri, FINISHED_NAME), FinishedRounds(rounds=config.rounds).model_dump_json())
    storage.write_atomic(storage.join(output_uri, REPORT_NAME), result.model_dump_json(indent=1))
    return result


def _begin(config: DownloadConfig, output_uri: str) -> int:
    """Not done until it is done again, and without what a round left that is no longer asked for.

    Returns:
        The rounds that a download before ended with, 0 where none has ended: what lies there is left as it is.

    Raises:
        BadInputError: those are more than are asked for now.
    """
    uri = storage.join(output_uri, FINISHED_NAME)
    finished = artefacts.read_model(uri, FinishedRounds).rounds if storage.exists(uri) else 0
    if finished > config.rounds:
        raise BadInputError(f"{output_uri} has been through {finished} rounds; set rounds={finished} or more, or remove it")
    storage.remove(storage.join(output_uri, REPORT_NAME))
    for folder in later_rounds(output_uri):
        if int(folder.rpartition("/")[2]) > config.rounds:
            storage.remove(folder)
    return finished


def _of_round(plan: Plan, number: int, before: list[Reports], output_uri: str) -> Iterator[Partition]:
    """The partitions of a round: in the first all, later those with rows whose failure may have passed."""
    for partition in plan.partitions(output_uri, round_number=number):
        if number == 1:
            yield partition
        elif report := before[-1].get(partition.number):
            again = sum(count for reason, count in report.failed.items() if may_have_passed(reason))
            if again:
                yield partition._replace(num_rows=again)


def _finished(partitions: list[Partition], config: DownloadConfig, output_uri: str) -> Reports:
    """What earlier runs have done."""
    if not partitions:
        return {}
    folder = storage.join(round_folder(output_uri, partitions[0].round), PARTITIONS_FOLDER)
    there = {uri.rpartition("/")[2].removesuffix(".json") for uri in storage.list_files(folder, suffix=".json")}
    candidates = [partition for partition in partitions if partition.name in there]
    with ThreadPoolExecutor(_LOOK_UP_THREADS) as threads:  # in an object store each look is a wait
        reports = threads.map(lambda partition: finished_report(partition, config, output_uri=output_uri), candidates)
        return {report.partition: report for report in reports if report}


def _run_round(missing: list[Partition], config: DownloadConfig, output_uri: str, status: DownloadStatus) -> Reports:
    """Download the partitions of a round that are not done."""
    done: Reports = {}
    failed: list[Failed] = []

    def arguments() -> Iterator[tuple[Partition, DownloadConfig, str]]:
        for partition in missing:
            status.hand_out(partition)
            yield partition, config, output_uri

    with closing(fan_out_each(_download_partition, arguments(), config.tasks)) as ended:
        for one in ended:
            if isinstance(one, Failed):
                failed.append(one)
                status.failed(missing[one.place], one.error)
            else:
                done[one.result.partition] = one.result
                status.done(missing[one.place], one.result)
    status.end()
    if failed:
        named = "; ".join(
            f"partition {missing[one.place].name}, {one.tries} times: {type(one.error).__name__}: {one.error}"
            for one in failed[:MAX_NAMED_PARTITIONS]
        )
        more = f"; and {len(failed) - MAX_NAMED_PARTITIONS:,} more" if len(failed) > MAX_NAMED_PARTITIONS else ""
        rest = "the others were not begun" if len(failed) >= MAX_FAILED else "the others are done"
        raise PartitionsFailedError(
            f"{len(failed):,} of {len(missing):,} partitions failed, {rest}: {named}{more}. A second run tries only these again"
        )
    return done


def _download_partition(partition: Partition, config: DownloadConfig, output_uri: str) -> PartitionReport:
    with marked_as_begun(partition, output_uri):
        return download_partition(partition, config, output_uri=output_uri)


def _report(config: DownloadConfig, plan: Plan, rounds: list[Reports], output_uri: str, finished_rounds: int) -> DownloadReport:
    """The sums over all partitions and rounds, held against the list and the floors."""
    downloaded, failed, formats = Counter[int](), dict[int, Counter[str]](), Counter[str]()
    for last, reports in enumerate(rounds, start=1):
        for number, report in reports.items():
            downloaded[number] += report.downloaded
            formats.update(report.formats)
            counts = failed.setdefault(number, Counter())
            for reason in [reason for reason in counts if may_have_passed(reason)]:
                del counts[reason]  # every one of them was fetched again in this round
            counts.update(report.failed)
        assert last > 1 or len(reports) == len(plan.rows_hashes)
    requested = {number: report.requested for number, report in rounds[0].items()}
    require_plausible(
        config,
        plan,
        requested=requested,
        downloaded=downloaded,
        failed=failed,
        output_uri=output_uri,
        finished_rounds=finished_rounds,
    )
    in_all = sum(failed.values(), Counter())
    require_all_accounted("download", seen=plan.num_rows, out=downloaded.total(), lost=in_all)
    every = [report for reports in rounds for _, report in sorted(reports.items())]
    return DownloadReport(
        requested=plan.num_rows,
        downloaded=downloaded.total(),
        failed=dict(sorted(in_all.items())),
        bytes=sum(report.bytes for report in every),
        seconds=0,
        rounds=config.rounds,
        quarantined=sum(report.quarantined for report in every),
        shards=[shard for report in every for shard in report.shards],
        lineage={
            "config": config.model_dump(mode="json"),
            "config_hash": content_hash(config),
            "formats": dict(sorted(formats.items())),
            "list": {"inputs": plan.model_dump(mode="json")["inputs"], "hash": content_hash(plan.rows_hashes)},
        },
    )
