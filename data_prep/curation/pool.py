"""What the rules need to know of all samples, as columns in memory: no captions and no pictures among them.

N samples, in the order of the list.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.curation.dedup import digests_of
from data_prep.curation.near import UNKNOWN
from infra import storage
from infra.errors import CorruptArtefactError, DataLossError

_COLUMNS = ["row", "uid", "error", "width", "height", "caption_characters", "caption_words", "language", "language_score"]
_COLUMNS += ["sha256", "phash", "concept"]


class LooksFile(NamedTuple):
    uri: str
    first_row: int
    last_row: int


class Labels(NamedTuple):
    """A column of few different words."""

    codes: np.ndarray
    """(N,) int64 places in `names`; -1 for null."""
    names: list[str]


@dataclass(frozen=True)
class Pool:
    files: list[LooksFile]
    row: np.ndarray
    """(N,) int64, increasing."""
    uid: pa.ChunkedArray
    uid_hash: np.ndarray
    """(N,) uint64."""
    error: Labels
    width: np.ndarray
    height: np.ndarray
    """(N,) int32; 0 where the picture cannot be read."""
    caption_characters: np.ndarray
    caption_words: np.ndarray
    language: Labels
    language_score: np.ndarray
    """(N,) float32."""
    digest: np.ndarray
    """(N, 32) uint8: SHA-256 of the picture; zeros where nobody could read it."""
    phash: np.ndarray
    """(N,) uint64."""
    has_phash: np.ndarray
    concept: Labels

    def __len__(self) -> int:
        return len(self.row)


def load_pool(uris: Iterable[str]) -> Pool:
    """The measurements in files of looks, brought into the order of the list.

    Raises:
        CorruptArtefactError: a file cannot be read.
        DataLossError: a row of the list is there twice.
    """
    files, parts = [], []
    words: dict[str, dict[str, int]] = {name: {} for name in ("error", "language", "concept")}
    for uri in uris:
        table = _read(uri)
        if not table.num_rows:
            continue
        part = _columns(table, words)
        files.append(LooksFile(uri, int(part["row"].min()), int(part["row"].max())))
        parts.append((part, table["uid"].cast(pa.large_string())))
    nothing = _columns(_read_nothing(), words)
    columns: dict[str, Any] = {
        name: np.concatenate([empty, *(part[name] for part, _ in parts)]) for name, empty in nothing.items()
    }
    uid = pa.chunked_array([chunk for _, uids in parts for chunk in uids.chunks], type=pa.large_string())
    parts.clear()
    if (columns["row"][1:] < columns["row"][:-1]).any():
        order = np.argsort(columns["row"], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        uid = uid.take(pa.array(order))
    if (doubled := np.flatnonzero(columns["row"][1:] == columns["row"][:-1])).size:
        raise DataLossError(f"row {columns['row'][doubled[0]]:,} of the list is in more than one raw shard")
    labels: dict[str, Any] = {name: Labels(columns.pop(name), list(known)) for name, known in words.items()}
    return Pool(files=files, uid=uid, **labels, **columns)


def hash_uids(uids: Any) -> np.ndarray:
    """(N,) uint64 of (N,) Arrow strings: what two tables are joined by."""
    from pandas.util import hash_array  # here, as configurations are read where nothing is hashed

    return np.asarray(hash_array(uids.to_numpy(zero_copy_only=False).astype(object), categorize=False))


def read_rows(pool: Pool, *, size: int) -> Iterator[tuple[slice, pa.Table]]:
    """All that was measured, some samples at a time: their places in the pool, and their rows in its order."""
    first, last = (np.array([getattr(file, name) for file in pool.files]) for name in ("first_row", "last_row"))
    for start in range(0, len(pool), size):
        places = slice(start, min(start + size, len(pool)))
        low, high = pool.row[places][[0, -1]].tolist()
        holding = np.flatnonzero((first <= high) & (last >= low))
        bounds = (pc.field("row") >= low) & (pc.field("row") <= high)
        table = pa.concat_tables(_read(pool.files[number].uri, filters=bounds) for number in holding).sort_by("row")
        if not np.array_equal(table["row"].to_numpy(), pool.row[places]):
            raise CorruptArtefactError(f"the measurements of rows {low:,} to {high:,} changed while they were read")
        yield places, table


def _read(uri: str, filters: Any = None) -> pa.Table:
    with storage.open_read(uri) as file:
        try:
            return pq.read_table(file, columns=_COLUMNS if filters is None else None, filters=filters)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise CorruptArtefactError(
                f"{uri} is no readable file of measurements: {error}; remove it and run again"
            ) from error


def _read_nothing() -> pa.Table:
    from data_prep.curation.looks import LOOK_SCHEMA

    return LOOK_SCHEMA.empty_table().select(_COLUMNS)


def _columns(table: pa.Table, words: dict[str, dict[str, int]]) -> dict[str, np.ndarray]:
    numbers = {
        name: table[name].fill_null(0).to_numpy()
        for name in ("row", "width", "height", "caption_characters", "caption_words", "language_score", "phash")
    }
    return numbers | {
        "uid_hash": hash_uids(table["uid"].combine_chunks()) if table.num_rows else np.zeros(0, np.uint64),
        "digest": digests_of(table["sha256"].to_pylist()),
        "has_phash": table["phash"].is_valid().to_numpy(),
        **{name: _codes(table[name], known) for name, known in words.items()},
    }


def _codes(column: pa.ChunkedArray, known: dict[str, int]) -> np.ndarray:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    of_name = np.array([known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()] + [UNKNOWN], np.int64)
    return of_name[encoded.indices.fill_null(len(of_name) - 1).to_numpy(zero_copy_only=False)]
