"""One partition of a URL list downloaded: its rows fetched into shards, each with an outcome, and a report at the end.

Everything is a plain function: Ray comes in with `download.py`.
"""

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.audit import audit
from data_prep.download_config import DownloadConfig
from data_prep.fetch.policy import FetchError, url_problem
from data_prep.fetch_shards import fetch_shards
from data_prep.outcomes import collect_outcomes
from data_prep.partition_report import (
    PartitionReport,
    finished_report,
    outcomes_uri,
    read_table,
    remove_later_rounds,
    report_uri,
    write_finished,
)
from data_prep.quarantine import write_quarantine
from data_prep.raw import OUTCOME_SCHEMA, REMOVED, RawShard, round_folder, sized_shard
from data_prep.removal.requests import Forgotten, forgotten_in
from data_prep.sorted_shards import WrittenShard
from data_prep.url_plan import REPEATED, Partition, read_partition
from infra import storage


def download_partition(partition: Partition, config: DownloadConfig, *, output_uri: str) -> PartitionReport:
    """Download the pictures of a partition; does nothing when that is done, and starts afresh when it was left half-done.

    In a later round only those rows are fetched whose failure in the round before may have passed.

    Raises:
        DataLossError: a row came back without an outcome, or img2dataset did not go through the opener.
        CorruptArtefactError: a shard does not lie where it was written.
    """
    if done := finished_report(partition, config, output_uri=output_uri):
        return done
    started = time.monotonic()
    rows, before = _rows_to_fetch(partition, output_uri)
    shards_uri = storage.join(round_folder(output_uri, partition.round), "shards", partition.name)
    remove_later_rounds(partition, output_uri=output_uri)
    storage.remove(report_uri(output_uri, partition))
    storage.remove(shards_uri)
    storage.make_folder(shards_uri)
    not_fetched = _without_request(rows, forgotten_in(output_uri))
    tryable = rows.filter(pc.invert(pc.is_in(rows["row"], pa.array([entry["row"] for entry in not_fetched], pa.int64()))))
    fetched = fetch_shards(tryable.drop_columns("first"), config, folder=shards_uri, first_shard=partition.first_shard)
    folder = shards_uri.removeprefix(output_uri).strip("/")
    shards = [_arrived(shard, output_uri=output_uri, folder=folder) for shard in fetched.shards]
    outcomes = not_fetched + collect_outcomes(tryable, fetched.shards, fetched.records, folder=folder)
    for entry in outcomes:
        entry["round"] = partition.round
        entry["attempts"] = entry.get("attempts", 0) + before.get(entry["row"], 0)
    outcomes.sort(key=lambda entry: entry["row"])
    audited = audit(rows, pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA))
    report = PartitionReport(
        partition=partition.number,
        round=partition.round,
        requested=rows.num_rows,
        downloaded=audited.downloaded,
        failed=audited.failed,
        formats=audited.formats,
        bytes=audited.bytes,
        quarantined=write_quarantine(outcomes, partition, output_uri=output_uri),
        seconds=time.monotonic() - started,
        shards=shards,
        config_hash=config.fingerprint(),
        rows_hash=partition.fingerprint(),
    )
    write_finished(partition, report, outcomes, output_uri=output_uri)
    return report


def may_have_passed(reason: str) -> bool:
    """Whether a failure for this reason is worth another round."""
    return FetchError(reason, "").passing


def _rows_to_fetch(partition: Partition, output_uri: str) -> tuple[pa.Table, dict[int, int]]:
    """The rows of this round, and how often each was asked for in those before."""
    rows = read_partition(partition)
    if partition.round == 1:
        return rows, {}
    earlier = read_table(outcomes_uri(output_uri, partition._replace(round=partition.round - 1)))
    reasons = earlier["reason"].to_pylist()
    again = earlier.filter(pa.array([reason is not None and may_have_passed(reason) for reason in reasons], pa.bool_()))
    attempts = dict(zip(again["row"].to_pylist(), again["attempts"].to_pylist(), strict=True))
    return rows.filter(pc.is_in(rows["row"], again["row"].combine_chunks())), attempts


def _without_request(rows: pa.Table, forgotten: Forgotten) -> list[dict[str, Any]]:
    """The outcomes of the rows that nothing is asked for."""
    found = []
    for row in rows.select(["row", "uid", "url", "sha256", "first"]).to_pylist():
        entry = {"row": row["row"], "uid": row["uid"], "url": row["url"], "expected_sha256": row["sha256"], "state": "failed"}
        if row["first"] is not None:
            found.append(entry | {"reason": REPEATED, "detail": f"row {row['first']} has the same URL and caption"})
        elif forgotten.covers(uid=row["uid"], url=row["url"]):
            found.append(entry | {"reason": REMOVED})
        elif problem := url_problem(row["url"]):
            found.append(entry | {"reason": "bad_url", "detail": problem})
    return found


def _arrived(shard: WrittenShard, *, output_uri: str, folder: str) -> RawShard:
    """A shard as reports tell it; raises CorruptArtefactError when it does not lie there as it was written."""
    stored = sum(row.picture is not None for row in shard.rows)
    found = RawShard(path=f"{folder}/{shard.name}", samples=stored, bytes=shard.bytes, sha256=shard.sha256)
    sized_shard(output_uri, found)
    return found
