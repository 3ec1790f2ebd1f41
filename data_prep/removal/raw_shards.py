"""Forgetting samples in raw shards: pictures and captions in the tars, outcomes, reports.

Everything here, in `removal_lists.py` and in `removal_shards.py` may be cut off anywhere and run again: what is left to do is
worked out from the files, and files are replaced whole.  A picture in a raw shard is overwritten by zeros of the same length:
the offsets of keep lists hold.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.partition_report import read_table, write_table
from data_prep.raw import OUTCOMES_FOLDER, PARTITIONS_FOLDER, REMOVED, iter_outcomes, later_rounds
from data_prep.raw import REPORT_NAME as RAW_REPORT_NAME
from data_prep.raw_tar import scan_tar
from infra import storage
from infra.errors import CorruptArtefactError

Targets = dict[str, set[str] | None]
"""Samples to forget: uid -> SHA-256 of the pictures meant, None for any.  Two lists may use a uid for different pictures."""
_NOTE = ".blanked"
"""Beside a tar whose report does not have its new hash yet."""
_CONTENT_COLUMNS = ("caption", "captions", "caption_original", "phash", "exif")


def is_meant(uid: str, sha256: str | None, targets: Targets) -> bool:
    if uid not in targets:
        return False
    hashes = targets[uid]
    return hashes is None or sha256 is None or sha256 in hashes  # a keep list has none of the pictures in damaged shards


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

    A damaged tar stays one: its report keeps the hash of what was written once.  Where the samples cannot be found in it,
    it is removed.

    Args:
        rows: outcomes, also those that count as removed already: a killed attempt may have left the rest undone.
    """
    by_shard: dict[str, set[str]] = {}
    for row in rows:
        if row["shard"]:
            by_shard.setdefault(row["shard"], set()).add(row["uid"])
    uids = {row["uid"] for row in rows}
    for folder in [raw_uri, *later_rounds(raw_uri)]:
        for uri in storage.list_files(storage.join(folder, PARTITIONS_FOLDER), suffix=".json"):
            outcomes_uri = storage.join(folder, OUTCOMES_FOLDER, uri.rpartition("/")[2].removesuffix(".json") + ".parquet")
            outcomes = read_table(outcomes_uri)
            here = uids.intersection(outcomes["uid"].to_pylist())
            if not here:
                continue
            report = json.loads(storage.read_bytes(uri))
            touched = [shard for shard in report["shards"] if shard["path"] in by_shard]
            for shard in touched:
                _blank_in_tar(storage.join(raw_uri, shard["path"]), by_shard[shard["path"]], reported=shard["sha256"])
            for shard in report["shards"]:  # of all: they also have the captions of what failed
                _blank_in_parquet(storage.join(raw_uri, shard["path"].removesuffix(".tar") + ".parquet"), here)
            outcomes = _mark_outcomes(outcomes, outcomes_uri, here)
            _recount_partition(uri, report, outcomes, raw_uri, touched=touched)
    _recount_download(raw_uri)
    return sum(len(uids) for uids in by_shard.values())


def _blank_in_tar(uri: str, uids: set[str], *, reported: str) -> None:
    if not storage.exists(uri):
        return  # curation counts it as damaged
    data = storage.read_bytes(uri)
    blank = _blanked_tar(uri, data, uids)
    if blank is None:
        storage.remove(uri)  # damaged, and the pictures may be anywhere in it
    elif blank != data:
        noted = _noted(uri)
        if hashlib.sha256(data).hexdigest() in (reported, *noted):
            # before the tar: whenever this is cut off, its hash is in the report or in the note
            storage.write_atomic(uri + _NOTE, json.dumps([*noted, hashlib.sha256(blank).hexdigest()]))
        storage.write_atomic(uri, blank)


def _blanked_tar(uri: str, data: bytes, uids: set[str]) -> bytes | None:
    """The tar without these samples; None when it is damaged in a way that hides one of them."""
    try:
        uid_of = {sample.key: uid for sample in scan_tar(uri) if (uid := sample.record.get("uid")) in uids}
    except (CorruptArtefactError, TypeError):  # a uid that is no text
        return None
    if uids - set(uid_of.values()):
        return None
    blank = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
    for member in members:
        key, _, suffix = member.name.rpartition(".")
        if key not in uid_of:
            continue
        text = b""
        if suffix == "json":
            record = json.loads(data[member.offset_data : member.offset_data + member.size])
            text = json.dumps({"uid": uid_of[key], "row": record.get("row"), REMOVED: True}).encode().ljust(member.size)
        if len(text) > member.size:
            return None  # not as we write them
        blank[member.offset_data : member.offset_data + member.size] = text or bytes(member.size)
    return bytes(blank)


def _noted(uri: str) -> list[str]:
    """Hashes of a tar that an attempt meant to leave, and whose report may not tell yet."""
    found: list[str] = json.loads(storage.read_bytes(uri + _NOTE)) if storage.exists(uri + _NOTE) else []
    return found


def _blank_in_parquet(uri: str, uids: set[str]) -> None:
    """img2dataset's own table beside a shard."""
    if not storage.exists(uri):
        return
    data = storage.read_bytes(uri)
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        storage.remove(uri)  # damaged; nothing reads it once the partition is done
        return
    chosen = pc.is_in(table["uid"], pa.array(sorted(uids), pa.string()))
    if pc.any(chosen).as_py():
        write_table(blanked(table, chosen, {"status": REMOVED}), uri)


def _mark_outcomes(table: pa.Table, uri: str, uids: set[str]) -> pa.Table:
    meant = pc.is_in(table["uid"], pa.array(sorted(uids), pa.string()))
    chosen = pc.and_(meant, pc.equal(table["state"], "downloaded"))  # of one that failed there is nothing
    if pc.any(chosen).as_py():
        # where it lies and the hash of its picture stay: they find its traces when this is run again
        values = {"state": "failed", "reason": REMOVED} | dict.fromkeys(
            ("detail", "format", "width", "height", "bytes", "received_sha256", "received_bytes")
        )
        table = blanked(table, chosen, values)
        write_table(table, uri)
    return table


def blanked(table: pa.Table, chosen: Any, values: dict[str, Any]) -> pa.Table:
    """The table with these values, and nothing in columns of content, in the chosen rows."""
    values = dict.fromkeys(name for name in _CONTENT_COLUMNS if name in table.column_names) | values
    for name, value in values.items():
        if name in table.column_names:
            place = table.schema.get_field_index(name)
            column = pc.if_else(chosen, pa.scalar(value, table.schema.field(name).type), table[name])
            table = table.set_column(place, table.schema.field(name), column)
    return table


def _recount_partition(
    uri: str, report: dict[str, Any], outcomes: pa.Table, raw_uri: str, *, touched: list[dict[str, Any]]
) -> None:
    """Bring a report in line.

    Args:
        touched: shards of the report, changed in place.
    """
    stored = Counter(outcomes.filter(pc.equal(outcomes["state"], "downloaded"))["shard"].to_pylist())
    notes = []
    for shard in touched:
        tar = storage.join(raw_uri, shard["path"])
        shard["samples"] = stored[shard["path"]]
        if noted := _noted(tar):
            notes.append(tar + _NOTE)
            if storage.exists(tar) and (found := storage.sha256(tar)) in noted:
                shard["sha256"] = found
    counts = _Counts([outcomes])
    storage.write_atomic(uri, json.dumps(report | counts.totals | {"formats": counts.formats}, indent=1))
    for note in notes:
        storage.remove(note)


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
