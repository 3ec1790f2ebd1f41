"""A constant HTTP load that costs little itself: the service under test needs the cores.

Each connection sends the next prepared request as soon as it has an answer (a closed loop).  Only what our services
answer with is read: HTTP/1.1 with a length or in chunks.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """What came of it."""

    seconds: float
    latencies_s: list[float]
    """Of the requests that were answered with 200, in the order of their answers."""
    failures: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


def request_bytes(path: str, body: bytes, *, content_type: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A POST request as it goes over the wire."""
    lines = {"host": "127.0.0.1", "content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def run_load(port: int, request: bytes, *, concurrency: int, seconds: float) -> Load:
    """Load one address of this machine for some seconds."""
    return run_mixed_load(port, [request], concurrency=concurrency, seconds=seconds)


def run_mixed_load(port: int, requests: Sequence[bytes], *, concurrency: int, seconds: float) -> Load:
    """The same with several requests in turns, whichever connection is free."""
    return asyncio.run(closed_load(port, itertools.cycle(requests), concurrency=concurrency, seconds=seconds))


async def closed_load(port: int, requests: Iterator[bytes], *, concurrency: int, seconds: float) -> Load:
    """The same inside an event loop."""
    load = Load(seconds, [])
    started = time.perf_counter()
    await asyncio.gather(*(_connection(port, requests, started + seconds, load) for _ in range(concurrency)))
    load.seconds = time.perf_counter() - started
    return load


async def _connection(port: int, requests: Iterator[bytes], until: float, load: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while (sent := time.perf_counter()) < until:
            writer.write(next(requests))
            status, body = await read_answer(reader)
            if status == 200:
                load.latencies_s.append(time.perf_counter() - sent)
            else:
                load.failures.append(f"{status} {body[:200]!r}")
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer on a connection.

    Raises:
        asyncio.IncompleteReadError: the connection ended before.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    if (found := head.find(b"content-length:")) >= 0:
        length = int(head[found + 15 : head.index(b"\r\n", found)])
        return status, await reader.readexactly(length)
    if b"transfer-encoding: chunked" not in head:
        return status, b""
    body = b""
    while length := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(length + 2))[:-2]
    await reader.readexactly(2)
    return status, body
