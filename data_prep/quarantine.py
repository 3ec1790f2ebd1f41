"""Rows whose picture was not the one that the list gives the hash of: what was expected, what came, and from where.

The bytes themselves are not kept: they may be anything.
"""

from typing import Any

import pyarrow as pa

from data_prep.partition_report import AnyPartition, write_table
from data_prep.raw import QUARANTINE_FOLDER, round_folder
from infra import storage

MISMATCH = "sha256_mismatch"
QUARANTINE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("expected_sha256", pa.string()),
        ("received_sha256", pa.string()),
        ("received_bytes", pa.int64()),
        ("fetched_at", pa.timestamp("ms", tz="UTC")),
    ]
)


def write_quarantine(outcomes: list[dict[str, Any]], partition: AnyPartition, *, output_uri: str) -> int:
    """Write the mismatches of a partition, where there are any; returns how many."""
    uri = storage.join(round_folder(output_uri, partition.round), QUARANTINE_FOLDER, f"{partition.name}.parquet")
    mismatches = [
        {name: entry.get(name) for name in QUARANTINE_SCHEMA.names} for entry in outcomes if entry.get("reason") == MISMATCH
    ]
    if mismatches:
        write_table(pa.Table.from_pylist(mismatches, schema=QUARANTINE_SCHEMA), uri)
    else:
        storage.remove(uri)
    return len(mismatches)
