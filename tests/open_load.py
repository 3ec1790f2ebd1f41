"""Requests that come when they come, whether those before are answered or not: an open loop.

Arrivals are a Poisson process.  One that finds every connection busy is not sent but counted, so that sockets stay bounded and
what was really offered is told.  A connection is a protocol of asyncio without streams or tasks: some tens of microseconds a
request, as the service under test needs the cores.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

ANSWER_WITHIN_S = 60.0
"""After the last request; what is not there by then hangs."""


@dataclass(frozen=True)
class Answer:
    """One request and what came back."""

    sent: float
    """On `time.perf_counter`."""
    seconds: float
    head: bytes
    """Status line and header, in lower case."""
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    def header(self, name: str) -> str | None:
        for line in self.head.split(b"\r\n")[1:]:
            found, _, value = line.partition(b":")
            if found == name.encode():
                return value.strip().decode()
        return None


@dataclass
class OpenLoad:
    """What came of it."""

    seconds: float = 0.0
    ended: float = 0.0
    """When nothing more was sent, on `time.perf_counter`."""
    answers: list[Answer] = field(default_factory=list)
    num_sent: int = 0
    num_held_back: int = 0
    """Every connection was busy."""
    broken: list[str] = field(default_factory=list)
    """Connections that ended with a request on them, and requests that were never answered."""

    @property
    def offered_per_s(self) -> float:
        """Requests that were sent."""
        return self.num_sent / self.seconds


class _Connection(asyncio.Protocol):
    """Sends one request at a time and reads its answer, which has a length or comes in chunks."""

    def __init__(self, load: OpenLoad, idle: list["_Connection"]) -> None:
        self._load, self._idle = load, idle
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self.sent: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._idle.append(self)

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self.sent = time.perf_counter()
        self._load.num_sent += 1
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self.sent is None:
            return
        head = self._received[:end].lower()
        if (found := head.find(b"content-length:")) >= 0:
            whole = end + 4 + int(head[found + 15 :].partition(b"\r\n")[0])
        else:  # in chunks, of which the last is empty
            last = self._received.find(b"\r\n0\r\n\r\n", end + 2)
            whole = last + 7 if last >= 0 else len(self._received) + 1
        if len(self._received) < whole:
            return
        self._load.answers.append(Answer(self.sent, time.perf_counter() - self.sent, head, self._received[end + 4 : whole]))
        self._received, self.sent = self._received[whole:], None
        self._idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.sent is not None:
            self._load.broken.append(f"the connection ended: {error!r}")
            self.sent = None
        elif self in self._idle:
            self._idle.remove(self)

    def give_up(self, why: str) -> None:
        self._load.broken.append(why)
        self.sent = None
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def offer(
    port: int, requests: Sequence[bytes], *, rate: float, seconds: float, max_connections: int, seed: int
) -> OpenLoad:
    """Send requests, in turns, at this mean rate, over connections that are opened before the first one."""
    load, idle, rng = OpenLoad(), [], random.Random(seed)
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: _Connection(load, idle), "127.0.0.1", port) for _ in range(max_connections)]
    started = due = time.perf_counter()
    number = 0
    while (now := time.perf_counter()) < started + seconds:
        while due <= now:
            if idle:
                idle.pop(0).send(requests[number % len(requests)])
            else:
                load.num_held_back += 1
            number += 1
            due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    load.ended = time.perf_counter()
    load.seconds = load.ended - started
    give_up = time.perf_counter() + ANSWER_WITHIN_S
    while any(connection.sent is not None for _, connection in made) and time.perf_counter() < give_up:
        await asyncio.sleep(0.01)
    for _, connection in made:
        if connection.sent is not None:
            connection.give_up(f"no answer within {ANSWER_WITHIN_S:g} s")
        connection.close()
    return load
