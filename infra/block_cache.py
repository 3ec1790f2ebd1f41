"""A bounded cache on local disk for ranges of remote objects, shared by all processes of a user on a machine.

Made for immutable objects: a block is fetched once by whoever needs it first, the others wait for it, and the oldest blocks go
when the cache is full.  Files appear whole (temporary file, atomic rename); a killed process leaves nothing that is taken for
a block.
"""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from infra import storage

NUM_LOCKS = 64
"""Fetches of different ranges may wait for each other by chance; more locks make that rarer."""
KEPT_SHARE = 0.75
"""What eviction leaves, so that it is not needed at every fetch."""
TEMPORARY = "."
ABANDONED_S = 3600
"""A temporary file older than that belongs to a killed process."""


def default_folder() -> Path:
    """In the machine's temporary folder (`TMPDIR`), readable by this user only."""
    return Path(tempfile.gettempdir()) / f"hyperclip-blocks-{os.getuid()}"


class Block(NamedTuple):
    """A range of a remote object that is fetched and kept as one."""

    uri: str
    start: int
    end: int
    version: str
    """Of the object (its hash): another one under the same URI is another object."""


class BlockCache:
    """Blocks of remote objects, from disk where they were fetched before."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Args:
        max_bytes: of all blocks together, beside those being written; a block larger than that is fetched and not kept.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, block: Block, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object, which lie in the block; fewer where the object ends early."""
        path = self._path(block)
        try:
            with path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), end - start, start - block.start)
        except FileNotFoundError:
            return self._fetch(block, path)[start - block.start : end - block.start]

    def fetch(self, block: Block) -> None:
        """Have a block on disk before it is read; safe to call from several threads."""
        path = self._path(block)
        if not path.exists():
            self._fetch(block, path)

    def forget(self, block: Block) -> None:
        """Drop a block, so that the next read fetches it again."""
        self._path(block).unlink(missing_ok=True)

    def _path(self, block: Block) -> Path:
        name = hashlib.sha256("\n".join(map(str, block)).encode()).hexdigest()
        return self._folder / name[:2] / name

    def _fetch(self, block: Block, path: Path) -> bytes:
        with self._locked(f"lock-{int(path.name[:8], 16) % NUM_LOCKS:02d}"):  # one process fetches, the others find it done
            try:
                return path.read_bytes()
            except FileNotFoundError:
                data = storage.read_range(block.uri, block.start, block.end)
            if len(data) == block.end - block.start and len(data) <= self._max_bytes:  # a shorter one is the caller's to report
                self._make_room(len(data))
                path.parent.mkdir(exist_ok=True)
                temporary = path.with_name(f"{TEMPORARY}{path.name}")
                temporary.write_bytes(data)
                temporary.replace(path)
        return data

    def _make_room(self, size: int) -> None:
        """Book `size` bytes; the booked total is a file under a lock, so that it holds for all processes together."""
        with self._locked("used") as used_path:
            booked = int(used_path.read_text() or 0) + size
            if booked > self._max_bytes:
                booked = self._evict(min(int(self._max_bytes * KEPT_SHARE), self._max_bytes - size)) + size
            used_path.write_text(str(booked))

    def _evict(self, max_bytes: int) -> int:
        """Remove the oldest blocks, and what killed processes left behind; returns the bytes that stay."""
        found = []
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):  # forgotten, or finished, in this moment
                found.append((path.stat(), path))
        left = sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda one: one[0].st_mtime):
            if left <= max_bytes:
                break
            if not path.name.startswith(TEMPORARY) or time.time() - status.st_mtime > ABANDONED_S:
                path.unlink(missing_ok=True)  # who has it open still reads it
                left -= status.st_size
        return left

    @contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        path = self._folder / name
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a killed process lets go of it
            yield path
