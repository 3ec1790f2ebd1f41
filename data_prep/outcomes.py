"""What became of every row of a partition: img2dataset's tables, its tars and the opener's side log, brought together."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.opener import RequestRecord
from data_prep.raw import RawShard, scan_tar
from infra import images, storage

_REASON = re.compile(r"\[(\w+)\] ")


def collect_outcomes(
    rows: pa.Table, shards: list[RawShard], records: list[RequestRecord], *, output_uri: str, folder: str, max_pixels: int
) -> list[dict[str, Any]]:
    """One entry per row of img2dataset's parquet files, and one per row that was not tried, in the order of the list.

    Format, size and hash are read from the pictures as they lie in the tars.

    Args:
        rows: of the URL list, of `URL_LIST_SCHEMA`.
        shards: img2dataset's output for them, in `folder`.
        records: the opener's side log.

    Raises:
        CorruptArtefactError: a tar cannot be read back.
    """
    # rows that share a URL share its requests; their failures differ at most in which attempt met which
    requests: dict[tuple[str, str | None], RequestRecord] = {}
    for record in records:
        requests[record.url, record.reason] = record
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
            entry = {name: row[name] for name in ("row", "uid", "url")}
            if row["status"] == "success" and row["uid"] in stored:
                request = requests.get((row["url"], None))
                entry |= {"state": "downloaded", **stored[row["uid"]]}
            else:
                reason = _reason(row["status"], row["error_message"] or "")
                request = requests.get((row["url"], reason)) or requests.get((row["url"], None))
                entry |= {"state": "failed", "reason": reason, "detail": row["error_message"]}
            if request:
                entry |= {name: getattr(request, name) for name in ("final_url", "http_status", "content_type")}
                entry |= {
                    "fetched_at": datetime.fromtimestamp(request.fetched_at, UTC),
                    "received_bytes": request.num_bytes,
                    "received_sha256": request.sha256,
                }
            outcomes.append(entry)
    for row in rows.filter(pc.is_valid(rows["url_problem"])).to_pylist():
        entry = {name: row[name] for name in ("row", "uid", "url")}
        outcomes.append(entry | {"state": "failed", "reason": "bad_url", "detail": row["url_problem"]})
    return sorted(outcomes, key=lambda entry: entry["row"])


def _reason(status: str, message: str) -> str:
    """The stable word for a failure that img2dataset reports as free text."""
    if found := _REASON.match(message):
        return found[1]
    if message == "hash mismatch":
        return "sha256_mismatch"
    if "X-Robots-Tag" in message:
        return "robots_disallowed"
    return "truncated" if status == "failed_to_resize" else "connection"
