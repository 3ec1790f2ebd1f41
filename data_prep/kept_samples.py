"""The kept samples of a keep list in columns: their random order, where it is cut into shards, and the rows of a shard.

The list is read a batch at a time.  What is kept of it lies in a file on this machine that is mapped into memory, so the driver
holds 24 bytes a sample while it sorts, however long captions are.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.curation.curate import KEEP_SCHEMA
from data_prep.manifest import NO_SOURCE
from infra import storage
from infra.errors import BadInputError, CorruptArtefactError

ROWS_AT_ONCE = 1 << 16
_NOT_OF_A_SHARD = {"keep", "reason", "duplicate_of", "row", "phash"}
NEEDED = [name for name in KEEP_SCHEMA.names if name not in _NOT_OF_A_SHARD]
"""Columns that a training shard is written from."""


class KeptSamples:
    """Rows of a keep list that are kept, in its order, with what became of the others."""

    def __init__(self, batches: list[pa.RecordBatch], *, dropped: Counter[str], sources: list[str], samples_hash: str) -> None:
        self.dropped = dropped
        self.sources = sources
        """Names, sorted; `NO_SOURCE` where some have none."""
        self.samples_hash = samples_hash
        """Over uid and hash of each, in the order of the list."""
        self._batches = batches
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def shuffled(self, seed: int) -> np.ndarray:
        """Places (N,) in an order that depends on seed and uids alone, not on where the samples came from."""
        keys = np.empty((len(self), 2), dtype=np.uint64)  # 128 of the hash's 256 bits: enough to never meet twice
        for batch, start in zip(self._batches, self._starts, strict=False):
            digests = b"".join(hashlib.sha256(f"{seed}:{uid}".encode()).digest() for uid in batch["uid"].to_pylist())
            keys[start : start + batch.num_rows] = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)[:, :2]
        return np.lexsort((keys[:, 1], keys[:, 0]))

    def image_bytes(self) -> np.ndarray:
        """Size of each picture (N,)."""
        return np.concatenate([batch["image_bytes"].to_numpy() for batch in self._batches])

    def take(self, places: np.ndarray) -> pa.Table:
        """Rows at these places, in this order, with the columns `NEEDED`."""
        ascending = np.argsort(places, kind="stable")
        sorted_places = places[ascending]
        edges = np.searchsorted(sorted_places, self._starts)
        # batch by batch: Table.take would join all of them first
        parts = [
            batch.take(pa.array(sorted_places[low:high] - start))
            for batch, start, (low, high) in zip(self._batches, self._starts, pairwise(edges), strict=False)
            if high > low
        ]
        return pa.Table.from_batches(parts).take(pa.array(np.argsort(ascending)))


@contextmanager
def kept_samples(keep_list_uri: str) -> Iterator[KeptSamples]:
    """Read a keep list; what is yielded lasts as long as the context.

    Raises:
        BadInputError: nothing is there, or it lacks a column.
        CorruptArtefactError: no readable parquet file.
    """
    dropped: Counter[str] = Counter()
    sources: set[str] = set()
    digest = hashlib.sha256()
    schema = pa.schema([KEEP_SCHEMA.field(name) for name in NEEDED])
    with tempfile.TemporaryDirectory(prefix="hyperclip-kept-") as folder:
        path = Path(folder) / "kept.arrow"
        with storage.open_read(keep_list_uri) as file, pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
            try:
                parquet = pq.ParquetFile(file)
                _require_columns(parquet.schema_arrow.names, keep_list_uri)
                for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=[*NEEDED, "keep", "reason"]):
                    reasons = pc.value_counts(batch.filter(pc.invert(batch["keep"]))["reason"])
                    dropped.update({entry["values"].as_py(): entry["counts"].as_py() for entry in reasons})
                    kept = batch.filter(batch["keep"])
                    sources.update(name or NO_SOURCE for name in kept["source"].unique().to_pylist())
                    for uid, sha256 in zip(kept["uid"].to_pylist(), kept["sha256"].to_pylist(), strict=True):
                        digest.update(f"{uid} {sha256}\n".encode())
                    out.write_batch(kept.select(NEEDED).cast(schema))
            except (pa.ArrowException, OSError) as error:
                raise CorruptArtefactError(f"{keep_list_uri} is no readable parquet file: {error}") from error
        with pa.memory_map(str(path)) as mapped:
            reader = pa.ipc.open_file(mapped)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            yield KeptSamples(batches, dropped=dropped, sources=sorted(sources), samples_hash=digest.hexdigest())


def cut(sizes: np.ndarray, *, max_samples: int, max_bytes: int) -> list[tuple[int, int]]:
    """Runs [start, end) of samples in their order, each as long as both bounds allow; one that is larger stands alone.

    Args:
        sizes: (N,) bytes of each.
    """
    total = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    runs, start = [], 0
    while start < len(sizes):
        fitting = int(np.searchsorted(total, total[start] + max_bytes, side="right")) - 1
        end = min(start + max_samples, max(fitting, start + 1))
        runs.append((start, min(end, len(sizes))))
        start = end
    return runs


def _require_columns(names: list[str], uri: str) -> None:
    if missing := [name for name in [*NEEDED, "keep", "reason"] if name not in names]:
        raise BadInputError(f"{uri} is no keep list: it lacks the columns {', '.join(missing)}")
