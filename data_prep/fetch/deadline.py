"""The time one request may take, from the first look-up to the last byte."""

import contextlib
import time
from collections.abc import Iterator


class Deadline:
    """Counts down; stands still while a request waits for its turn at a host."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.stood_s = 0.0
        """Time that did not count, so far."""

    def remaining_s(self) -> float:
        """Raises TimeoutError when nothing is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of the whole request has passed")
        return left

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self._end

    def at_most(self, seconds: float) -> "Deadline":
        """Another one that ends no later than this.  Raises TimeoutError when nothing is left."""
        return Deadline(min(seconds, self.remaining_s()))

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that does not count."""
        started = time.monotonic()
        try:
            yield
        finally:
            stood_s = time.monotonic() - started
            self._end += stood_s
            self.stood_s += stood_s
