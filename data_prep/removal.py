"""Forgetting samples in raw shards: pictures and captions in the tars, outcomes, reports.

Everything here, in `removal_lists.py` and in `removal_shards.py` may be cut off anywhere and run again: what is left to do is
worked out from the files, and files are replaced whole.  A picture in a raw shard is overwritten by zeros of the same length:
the offsets of keep lists hold.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.partition_report import write_table
from data_prep.raw import OUTCOMES_FOLDER, PARTITIONS_FOLDER, REMOVED, iter_outcomes, later_rounds
from data_prep.raw import REPORT_NAME as RAW_REPORT_NAME
from infra import storage
from infra.errors import CorruptArtefactError

Targets = dict[str, set[str] | None]
"""Samples to forget: uid -> SHA-256 of the pictures meant, None for any.  Two lists may use a uid for different pictures."""
_CONTENT_COLUMNS = ("caption", "captions", "caption_original", "phash", "exif")


def is_meant(uid: str, sha256: str | None, targets: Targets) -> bool:
    if uid not in targets:
        return False
    hashes = targets[uid]
    return hashes is None or sha256 in hashes


def matching_rows(raw_uri: str, matches: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Outcomes of the rows that `matches` is true of, called with uid and url; reads a partition at a time."""
    found = []
    for table in iter_outcomes(raw_uri):
        names = table.select(["uid", "url"]).to_pylist()
        places = [place for place, row in enumerate(names) if matches(row)]
        if places:
            found += table.take(places).to_pylist()
    return found


def forget_in_raw(raw_uri: str, rows: list[dict[str, Any]]) -> int:
    """Overwrite pictures and captions in the tars, then bring outcomes and reports in line; returns how many were stored.

    Args:
        rows: outcomes, also those that count as removed already: a killed attempt may have left the rest undone.
    """
    by_shard: dict[str, set[str]] = {}
    for row in rows:
        if row["shard"]:
            by_shard.setdefault(row["shard"], set()).add(row["uid"])
    for shard, uids in by_shard.items():
        _blank_in_tar(storage.join(raw_uri, shard), uids)
        _blank_in_parquet(storage.join(raw_uri, shard.removesuffix(".tar") + ".parquet"), uids)
    rounds = [raw_uri, *later_rounds(raw_uri)]
    uids = {row["uid"] for row in rows}
    for folder in rounds:
        for uri in storage.list_files(storage.join(folder, OUTCOMES_FOLDER), suffix=".parquet"):
            _mark_outcomes(uri, uids)
        for uri in storage.list_files(storage.join(folder, PARTITIONS_FOLDER), suffix=".json"):
            outcomes = storage.join(folder, OUTCOMES_FOLDER, uri.rpartition("/")[2].removesuffix(".json") + ".parquet")
            _recount_partition(uri, outcomes, raw_uri, touched=by_shard.keys())
    _recount_download(raw_uri)
    return sum(len(uids) for uids in by_shard.values())


def _blank_in_tar(uri: str, uids: set[str]) -> None:
    data = bytearray(storage.read_bytes(uri))
    changed = False
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
    meant = set()
    for member in members:
        stem, _, suffix = member.name.rpartition(".")
        if suffix == "json":
            record = json.loads(data[member.offset_data : member.offset_data + member.size])
            if record["uid"] in uids:
                meant.add(stem)
    for member in members:
        stem, _, suffix = member.name.rpartition(".")
        if stem not in meant:
            continue
        place = slice(member.offset_data, member.offset_data + member.size)
        blank = bytes(member.size)
        if suffix == "json":
            record = json.loads(data[place])
            text = json.dumps({"uid": record["uid"], "row": record.get("row"), REMOVED: True}).encode()
            blank = text.ljust(member.size)
            if len(blank) != member.size:
                raise CorruptArtefactError(
                    f"{uri}: {member.name} is too short to be blanked; remove the file and download it again"
                )
        changed |= data[place] != blank
        data[place] = blank
    if changed:
        storage.write_atomic(uri, bytes(data))


def _blank_in_parquet(uri: str, uids: set[str]) -> None:
    """img2dataset's own table beside a shard."""
    if not storage.exists(uri):
        return
    with storage.open_read(uri) as file:
        table = pq.read_table(file)
    write_table(blanked(table, pc.is_in(table["uid"], pa.array(sorted(uids))), {"status": REMOVED}), uri)


def _mark_outcomes(uri: str, uids: set[str]) -> None:
    with storage.open_read(uri) as file:
        table = pq.read_table(file)
    meant = pc.is_in(table["uid"], pa.array(sorted(uids), pa.string()))
    chosen = pc.and_(meant, pc.equal(table["state"], "downloaded"))  # of one that failed there is nothing
    if pc.any(chosen).as_py():
        # where it lies and the hash of its picture stay: they find its traces when this is run again
        values = {"state": "failed", "reason": REMOVED} | dict.fromkeys(
            ("detail", "format", "width", "height", "bytes", "received_sha256", "received_bytes")
        )
        write_table(blanked(table, chosen, values), uri)


def blanked(table: pa.Table, chosen: Any, values: dict[str, Any]) -> pa.Table:
    """The table with these values, and nothing in columns of content, in the chosen rows."""
    values = dict.fromkeys(name for name in _CONTENT_COLUMNS if name in table.column_names) | values
    for name, value in values.items():
        if name in table.column_names:
            place = table.schema.get_field_index(name)
            column = pc.if_else(chosen, pa.scalar(value, table.schema.field(name).type), table[name])
            table = table.set_column(place, table.schema.field(name), column)
    return table


def _recount_partition(uri: str, outcomes_uri: str, raw_uri: str, *, touched: Iterable[str]) -> None:
    report = json.loads(storage.read_bytes(uri))
    if not any(shard["path"] in touched for shard in report["shards"]):
        return
    for shard in report["shards"]:
        tar = storage.join(raw_uri, shard["path"])
        shard |= {"samples": _num_stored(tar), "sha256": storage.sha256(tar)}
    with storage.open_read(outcomes_uri) as file:
        counts = _Counts([pq.read_table(file)])
    storage.write_atomic(uri, json.dumps(report | counts.totals | {"formats": counts.formats}, indent=1))


def _num_stored(uri: str) -> int:
    """Samples in a raw tar, without those removed."""
    count = 0
    with storage.open_read(uri) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(".json") else None
            count += content is not None and not json.loads(content.read()).get(REMOVED)
    return count


def _recount_download(raw_uri: str) -> None:
    uri = storage.join(raw_uri, RAW_REPORT_NAME)
    if not storage.exists(uri):
        return
    shards: dict[str, Any] = {}
    for folder in [raw_uri, *later_rounds(raw_uri)]:
        for partition in storage.list_files(storage.join(folder, PARTITIONS_FOLDER), suffix=".json"):
            shards |= {shard["path"]: shard for shard in json.loads(storage.read_bytes(partition))["shards"]}
    report = json.loads(storage.read_bytes(uri))
    counts = _Counts(iter_outcomes(raw_uri))
    report |= counts.totals | {"shards": [shards.get(shard["path"], shard) for shard in report["shards"]]}
    report["lineage"] |= {"formats": counts.formats}
    storage.write_atomic(uri, json.dumps(report, indent=1))


class _Counts:
    """What outcomes add up to, as reports tell it."""

    def __init__(self, outcomes: Iterable[pa.Table]) -> None:
        failed: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        num_bytes = 0
        for table in outcomes:
            stored = pc.equal(table["state"], "downloaded")
            failed.update(table.filter(pc.invert(stored))["reason"].to_pylist())
            formats.update(table.filter(stored)["format"].to_pylist())
            num_bytes += pc.sum(table.filter(stored)["bytes"]).as_py() or 0
        self.formats = dict(sorted(formats.items()))
        self.totals = {"downloaded": formats.total(), "failed": dict(sorted(failed.items())), "bytes": num_bytes}
