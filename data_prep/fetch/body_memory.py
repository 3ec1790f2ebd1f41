"""A bound on the memory of bodies under way: many threads that read large pictures at once must not fill it.

Large bodies grow in memory of their own, which goes back to the system the moment a body is done with; `malloc` would keep it,
a heap for every few threads.
"""

import contextlib
import mmap
import threading
from collections.abc import Iterator

from data_prep.fetch.deadline import Deadline

MAX_TOTAL_BYTES = 80_000_000
FREE_BYTES = 1 << 20
"""A body may have so much without asking."""


class BodyMemory:
    """Room for large bodies, reserved once and for the whole of a body, so that nobody waits with half of one in hand."""

    def __init__(self, total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._total = self._left = total_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room_for(self, num_bytes: int, deadline: Deadline) -> Iterator[mmap.mmap]:
        """Wait for room; raises TimeoutError when there is none before the deadline."""
        wanted = min(num_bytes, self._total)
        with self._changed:
            while self._left < wanted:
                self._changed.wait(deadline.remaining_s())
            self._left -= wanted
        try:
            with mmap.mmap(-1, num_bytes) as room:
                yield room
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()
