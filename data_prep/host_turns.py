"""Politeness: how many requests a host sees at once, how close together, and when it is left alone.

All of it within one process: tasks on a cluster do not know of each other, so a host sees at most this times the tasks at once.
Nobody holds a turn while waiting for another, so redirects in a circle cannot lock up.
"""

import contextlib
import email.utils
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.fetch_policy import FetchError

MAX_IDLE_HOSTS = 10_000
MAX_PAUSE_S = 3600.0
MAX_PAUSES_IN_A_ROW = 3
"""A host that goes on asking for pauses is left alone for `MAX_PAUSE_S`: its URLs are for a later round."""


@dataclass
class _Host:
    queue: deque[object] = field(default_factory=deque)
    """Those who wait, first come first served."""
    under_way: int = 0
    spacing_s: float = 0.0
    next_start: float = 0.0
    paused_until: float = 0.0
    pauses: int = 0
    """Since the last answer without one."""

    def is_idle(self, now: float) -> bool:
        return not (self.queue or self.under_way or self.pauses) and now >= max(self.next_start, self.paused_until)


class HostTurns:
    """Turns at hosts, by name.  Thread-safe."""

    def __init__(self, *, at_once: int, spacing_s: float, max_wait_s: float) -> None:
        self._at_once, self._spacing_s, self._max_wait_s = at_once, spacing_s, max_wait_s
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self, host: str, *, spacing_s: float = 0.0) -> Iterator[None]:
        """One request to the host may be under way in here.

        Args:
            spacing_s: what the host itself asks for; bounded by `max_wait_s`.

        Raises:
            FetchError: `host_busy`: no turn within `max_wait_s`; at once when that is certain.
        """
        self._take(host, max(self._spacing_s, min(spacing_s, self._max_wait_s)))
        try:
            yield
        finally:
            with self._changed:
                self._hosts[host].under_way -= 1
                self._changed.notify_all()

    def pause(self, host: str, seconds: float) -> bool:
        """Leave a host alone; returns whether it is worth waiting for.  To be called within a turn."""
        with self._changed:
            state = self._hosts[host]
            state.pauses += 1
            if state.pauses > MAX_PAUSES_IN_A_ROW:
                seconds = MAX_PAUSE_S
            seconds = min(seconds, MAX_PAUSE_S)
            state.paused_until = max(state.paused_until, time.monotonic() + seconds)
            self._changed.notify_all()
        return seconds <= self._max_wait_s

    def calm(self, host: str) -> None:
        """The host answered without asking for a pause.  To be called within a turn."""
        state = self._hosts[host]
        if state.pauses and time.monotonic() >= state.paused_until:
            state.pauses = 0

    def _take(self, host: str, spacing_s: float) -> None:
        me = object()
        with self._changed:
            state = self._hosts.setdefault(host, _Host())
            self._hosts.move_to_end(host)
            state.spacing_s = spacing_s
            state.queue.append(me)
            gives_up = time.monotonic() + self._max_wait_s
            try:
                while True:
                    now = time.monotonic()
                    ahead = state.queue.index(me)
                    ready = max(state.next_start, state.paused_until) + ahead * spacing_s
                    if ahead == 0 and state.under_way < self._at_once and now >= ready:
                        state.under_way += 1
                        state.next_start = now + spacing_s
                        break
                    if max(now, ready) > gives_up:
                        raise FetchError("host_busy", f"{host} gives no turn within {self._max_wait_s:g} s", later=True)
                    due = ahead == 0 and state.under_way < self._at_once
                    self._changed.wait(max(0.0, (ready if due else gives_up) - now) + 1e-4)
            finally:
                state.queue.remove(me)
                self._changed.notify_all()
            self._forget_idle()

    def _forget_idle(self) -> None:
        while len(self._hosts) > MAX_IDLE_HOSTS:
            name, oldest = next(iter(self._hosts.items()))
            self._hosts.move_to_end(name)
            if not oldest.is_idle(time.monotonic()):
                return  # looked at again when the next one comes
            del self._hosts[name]


def retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header, a number or a date; None when there is none that can be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return None
