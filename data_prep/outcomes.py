"""What became of every row of a partition: img2dataset's tables, its tars and the opener's side log, brought together."""

import hashlib
import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.fetch.opener import RequestRecord
from data_prep.raw import RawShard
from data_prep.raw_tar import scan_tar
from infra import images, storage

_REASON = re.compile(r"\[(\w+)\] ")


def collect_outcomes(
    rows: pa.Table, shards: list[RawShard], records: list[RequestRecord], *, output_uri: str, folder: str, max_pixels: int
) -> list[dict[str, Any]]:
    """One entry per row of img2dataset's parquet files, of `OUTCOME_SCHEMA`.

    Format, size and hash are read from the pictures as they lie in the tars.

    Args:
        rows: those that were fetched, of `URL_LIST_SCHEMA`.
        shards: img2dataset's output for them, in `folder`.
        records: the opener's side log.

    Raises:
        CorruptArtefactError: a tar cannot be read back.
    """
    requests: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        requests[record.url].append(record)
    expected = dict(zip(rows["row"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
    stored = {}
    for shard in shards:
        for sample in scan_tar(storage.join(output_uri, shard.path)):
            info = images.probe(sample.image, max_pixels=max_pixels)  # what is stored, not what a header claimed
            stored[sample.record["uid"]] = {
                "shard": shard.path,
                "key": sample.key,
                "format": info.format,
                "width": info.width,
                "height": info.height,
                "bytes": len(sample.image),
                "sha256": hashlib.sha256(sample.image).hexdigest(),
            }
    outcomes: list[dict[str, Any]] = []
    for uri in storage.list_files(folder, suffix=".parquet"):
        with storage.open_read(uri) as file:
            tried = pq.read_table(file, columns=["row", "uid", "url", "status", "error_message"]).to_pylist()
        for row in tried:
            entry = {name: row[name] for name in ("row", "uid", "url")} | {"expected_sha256": expected[row["row"]]}
            if row["status"] == "success" and row["uid"] in stored:
                entry |= {"state": "downloaded", **stored[row["uid"]]}
            else:
                reason = _reason(row["status"], row["error_message"] or "")
                entry |= {"state": "failed", "reason": reason, "detail": row["error_message"]}
            if request := _request_of(entry, requests[row["url"]]):
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
