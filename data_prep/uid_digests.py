"""Which rows of a list share their uid, found with memory for a small part of the list at a time.

Sixteen bytes of a hash of every uid go into one of 256 files on local disk, by their first byte; equal uids meet in one file,
and each file is sorted alone.  A hundred million rows make 2.4 GB of them, and 10 MB in memory.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np
import numpy.typing as npt

_BUCKETS = 256
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("row", "<i8")])
DIGEST_BYTES = 16


class Repetition(NamedTuple):
    """A row whose uid an earlier one has."""

    row: int
    first: int
    """The first row with it."""


class UidDigests:
    """Collects the digests of a list, in the order of its rows, in a folder of its own that is gone at the end."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="hyperclip-uids-")
        self._files: dict[int, IO[bytes]] = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        self._folder.cleanup()

    def add(self, digests: bytes, rows: npt.NDArray[np.int64]) -> None:
        """Of some rows: `DIGEST_BYTES` each, one after the other."""
        count = len(digests) // DIGEST_BYTES
        entries = np.empty(count, _ENTRY)
        halves = np.frombuffer(digests, ">u8").reshape(count, 2)
        entries["high"], entries["low"] = halves[:, 0], halves[:, 1]
        entries["row"] = rows
        bucket = (entries["high"] >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(_BUCKETS), side="right")
        start = 0
        for number, end in enumerate(ends.tolist()):
            if end > start:
                self._file(number).write(entries[order[start:end]].tobytes())
            start = end

    def repetitions(self) -> Iterator[list[Repetition]]:
        """Rows that repeat the uid of another, a file at a time."""
        for file in self._files.values():
            file.flush()
        for number in sorted(self._files):
            found = _repeated(np.fromfile(self._path(number), _ENTRY))
            if found:
                yield found

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:02x}"

    def _file(self, bucket: int) -> IO[bytes]:
        if bucket not in self._files:
            self._files[bucket] = self._path(bucket).open("wb")
        return self._files[bucket]


def doubled(found: Iterable[list[Repetition]], *, named: int) -> tuple[int, dict[int, list[int]]]:
    """How many uids are there twice, and for the first of them the rows that have it: first row -> all rows."""
    count, places = 0, dict[int, list[int]]()
    for repetitions in found:
        firsts = sorted({again.first for again in repetitions})
        count += len(firsts)
        # the smallest of all, though they come in no order
        chosen = set(sorted({*places, *firsts})[:named])
        places = {first: rows for first, rows in places.items() if first in chosen}
        for again in repetitions:
            if again.first in chosen:
                places.setdefault(again.first, [again.first]).append(again.row)
    return count, dict(sorted(places.items()))


def digests_of(values: Sequence[bytes]) -> bytes:
    """The digests of some texts, one after the other."""
    sha256 = hashlib.sha256
    return b"".join([sha256(value).digest()[:DIGEST_BYTES] for value in values])


def _repeated(entries: npt.NDArray[np.void]) -> list[Repetition]:
    order = np.lexsort((entries["low"], entries["high"]))  # stable: of equal ones the earlier row comes first
    high, low, row = entries["high"][order], entries["low"][order], entries["row"][order]
    again = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1])) + 1
    if not len(again):
        return []
    new_run = np.ones(len(row), bool)
    new_run[again] = False
    first = row[np.flatnonzero(new_run)[np.cumsum(new_run) - 1]]
    return [Repetition(int(row[place]), int(first[place])) for place in again]
