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

from data_prep.fetch.policy import FetchError

MAX_IDLE_HOSTS = 10_000
MAX_PAUSE_S = 3600.0
MAX_PAUSES_IN_A_ROW = 3
"""A host that goes on asking for pauses is left alone for `MAX_PAUSE_S`: its URLs are for a later round."""


@dataclass
class _Host:
    queue: deque[threading.Condition] = field(default_factory=deque)
    """Those who wait, first come first served; each is woken alone, because the others could not go."""
    under_way: int = 0
    next_start: float = 0.0
    paused_until: float = 0.0
    pauses: int = 0
    """Since the last answer without one."""

    @property
    def ready(self) -> float:
        return max(self.next_start, self.paused_until)

    @property
    def is_idle(self) -> bool:
        return not self.queue and not self.under_way

    def wake_first(self) -> None:
        if self.queue:
            self.queue[0].notify()


class HostTurns:
    """Turns at hosts, by name.  Thread-safe."""

    def __init__(self, *, at_once: int, spacing_s: float, max_wait_s: float) -> None:
        self._at_once, self._spacing_s, self._max_wait_s = at_once, spacing_s, max_wait_s
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def turn(self, host: str, *, spacing_s: float = 0.0, waited_s: float = 0.0) -> Iterator[None]:
        """One request to the host may be under way in here.

        Args:
            spacing_s: what the host itself asks for; bounded by `max_wait_s`.
            waited_s: for turns of the same request before, at other hosts; is part of `max_wait_s`.

        Raises:
            FetchError: `host_busy`: no turn within `max_wait_s`; at once when that is certain.
        """
        self._take(host, max(self._spacing_s, min(spacing_s, self._max_wait_s)), self._max_wait_s - waited_s)
        try:
            yield
        finally:
            with self._lock:
                state = self._hosts[host]
                state.under_way -= 1
                state.wake_first()

    def pause(self, host: str, seconds: float) -> bool:
        """Leave a host alone; returns whether it is worth waiting for.  To be called within a turn."""
        with self._lock:
            state = self._hosts[host]
            state.pauses += 1
            seconds = MAX_PAUSE_S if state.pauses > MAX_PAUSES_IN_A_ROW else min(seconds, MAX_PAUSE_S)
            state.paused_until = max(state.paused_until, time.monotonic() + seconds)
            for waiting in state.queue:  # some of them need not wait any more
                waiting.notify()
        return seconds <= self._max_wait_s

    def calm(self, host: str) -> None:
        """The host answered without asking for a pause.  To be called within a turn."""
        with self._lock:
            state = self._hosts[host]
            if time.monotonic() >= state.paused_until:
                state.pauses = 0

    def _take(self, host: str, spacing_s: float, wait_s: float) -> None:
        with self._lock:
            state = self._hosts.setdefault(host, _Host())
            self._hosts.move_to_end(host)
            if state.queue or not self._is_free(state):
                self._wait(host, state, spacing_s, wait_s)
            state.under_way += 1
            state.next_start = time.monotonic() + spacing_s
            state.wake_first()
            self._forget_idle()

    def _is_free(self, state: _Host) -> bool:
        return state.under_way < self._at_once and time.monotonic() >= state.ready

    def _wait(self, host: str, state: _Host, spacing_s: float, wait_s: float) -> None:
        """Until it is our turn."""
        me = threading.Condition(self._lock)
        state.queue.append(me)
        gives_up = time.monotonic() + wait_s
        try:
            while not (state.queue[0] is me and self._is_free(state)):
                now, ready = time.monotonic(), state.ready + state.queue.index(me) * spacing_s
                if max(now, ready) > gives_up:
                    raise FetchError("host_busy", f"{host} gives no turn within {self._max_wait_s:g} s", later=True)
                due = ready if state.queue[0] is me and state.under_way < self._at_once else gives_up
                me.wait(due - now + 1e-4)
        finally:
            state.queue.remove(me)
            state.wake_first()

    def _forget_idle(self) -> None:
        while len(self._hosts) > MAX_IDLE_HOSTS:
            name, oldest = next(iter(self._hosts.items()))
            self._hosts.move_to_end(name)
            due = time.monotonic() >= oldest.ready or len(self._hosts) > 2 * MAX_IDLE_HOSTS
            if not (oldest.is_idle and due):
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
