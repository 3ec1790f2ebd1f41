"""What became of every row of a partition: what was written of it and the opener's side log, brought together."""

import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from data_prep.fetch.opener import RequestRecord
from data_prep.sorted_shards import WrittenShard

_REASON = re.compile(r"\[(\w+)\] ")


def collect_outcomes(
    rows: pa.Table, shards: list[WrittenShard], records: list[RequestRecord], *, folder: str
) -> list[dict[str, Any]]:
    """One entry per row that img2dataset handed to the writer of its shard, of `OUTCOME_SCHEMA`.

    Args:
        rows: those that were fetched, of `URL_LIST_SCHEMA`.
        shards: what was written of them.
        records: the opener's side log.
        folder: of the shards, relative to the raw folder.
    """
    requests: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        requests[record.url].append(record)
    expected = dict(zip(rows["row"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
    outcomes: list[dict[str, Any]] = []
    for shard in shards:
        for tried in shard.rows:
            entry = {"row": tried.row, "uid": tried.uid, "url": tried.url, "expected_sha256": expected[tried.row]}
            if tried.status == "success" and tried.picture:
                entry |= {"state": "downloaded", "shard": f"{folder}/{shard.name}", **tried.picture._asdict()}
            else:
                reason = _reason(tried.status, tried.error_message or "")
                entry |= {"state": "failed", "reason": reason, "detail": tried.error_message}
            if request := _request_of(entry, requests[tried.url]):
                entry |= {name: getattr(request, name) for name in ("final_url", "http_status", "content_type", "attempts")}
                entry |= {
                    "fetched_at": datetime.fromtimestamp(request.fetched_at, UTC),
                    "received_bytes": request.num_bytes,
                    "received_sha256": request.sha256,
                }
            outcomes.append(entry)
    return outcomes


def _request_of(entry: dict[str, Any], requests: list[RequestRecord]) -> RequestRecord | None:
    """The request that ended so.  Rows that share a URL share its requests, and may have met other bytes or another failure."""
    reason, expected = entry.get("reason"), entry["expected_sha256"]
    fits = [request for request in requests if request.reason == reason]
    if not fits:  # what img2dataset refused had arrived as far as the opener could tell
        fits = [request for request in requests if request.reason is None]
        fits = [request for request in fits if reason != "sha256_mismatch" or request.sha256 != expected] or fits
    elif reason is None:
        same = expected or entry["sha256"]
        fits = [request for request in fits if request.sha256 == same] or fits
    return fits[-1] if fits else None


def _reason(status: str, message: str) -> str:
    """The stable word for a failure that img2dataset reports as free text."""
    if found := _REASON.match(message):
        return found[1]
    if message == "hash mismatch":
        return "sha256_mismatch"
    if "X-Robots-Tag" in message:
        return "robots_disallowed"
    return "truncated" if status == "failed_to_resize" else "connection"
