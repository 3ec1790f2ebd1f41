"""Forgetting samples in keep lists: they are dropped with the reason `removed`, and their captions blanked."""

import json
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.raw import REMOVED
from data_prep.removal.raw_shards import Targets, blanked, is_meant
from infra import storage


def forget_in_keep_list(keep_list_uri: str, targets: Targets) -> int:
    """Drop the samples with the reason `removed` and blank their captions; returns how many rows there are of them."""
    with storage.open_read(keep_list_uri) as file:
        parquet = pq.ParquetFile(file)
        found = sum(pc.sum(_meant(batch, targets)).as_py() or 0 for batch in _uids(parquet))
        if not found:
            return 0
        schema = parquet.schema_arrow
        with storage.staged_file(keep_list_uri) as path, pq.ParquetWriter(path, schema) as writer:
            for batch in parquet.iter_batches():
                table = pa.Table.from_batches([batch])
                dropped = {"keep": False, "reason": REMOVED, "rule": REMOVED, "score": None}
                writer.write_table(blanked(table, _meant(batch, targets), dropped))
    return int(found)


def count_in_keep_list(keep_list_uri: str, targets: Targets) -> int:
    with storage.open_read(keep_list_uri) as file:
        return int(sum(pc.sum(_meant(batch, targets)).as_py() or 0 for batch in _uids(pq.ParquetFile(file))))


def recount_curation(report_uri: str, keep_list_uri: str) -> None:
    """Bring the report of a curation in line with its keep list."""
    if not storage.exists(report_uri):
        return
    dropped: Counter[str] = Counter()
    kept = 0
    with storage.open_read(keep_list_uri) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["keep", "reason"]):
            kept += pc.sum(batch["keep"]).as_py() or 0
            dropped.update(batch.filter(pc.invert(batch["keep"]))["reason"].to_pylist())
    report = json.loads(storage.read_bytes(report_uri)) | {"kept": kept, "dropped": dict(sorted(dropped.items()))}
    storage.write_atomic(report_uri, json.dumps(report, indent=1))


def _uids(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    names = [name for name in ("uid", "sha256") if name in parquet.schema_arrow.names]
    yield from parquet.iter_batches(columns=names)


def _meant(batch: pa.RecordBatch, targets: Targets) -> pa.Array:
    """Which rows are among the targets; in a list without hashes of pictures the uid decides."""
    chosen = pc.is_in(batch["uid"], pa.array(sorted(targets), pa.string()))
    if "sha256" not in batch.schema.names or not pc.any(chosen).as_py():
        return chosen
    meant = [
        bool(one) and is_meant(uid, sha256, targets)
        for one, uid, sha256 in zip(chosen.to_pylist(), batch["uid"].to_pylist(), batch["sha256"].to_pylist(), strict=True)
    ]
    return pa.array(meant, pa.bool_())
