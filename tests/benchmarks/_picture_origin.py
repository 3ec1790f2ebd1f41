"""A web server of many JPEGs for download benchmarks: loopback, HTTP/1.1 with keep-alive, a set latency, and faults by request.

Run as a process of its own, so that it takes no time of the interpreter that is measured:

    python -m tests.benchmarks._picture_origin --latency-ms 5 --faulty
"""

import argparse
import asyncio
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

NUM_DISTINCT = 256
SIDES = (300, 640)
"""Shortest and longest side of its pictures, as thumbnails and embedded pictures of the web have."""
MISSING_EVERY, DRIP_EVERY = 10, 20
DRIP_S, DRIP_WAIT_S = 60.0, 0.5
"""A dripping picture takes this long; never longer than this between two drops, so no timeout of one operation strikes."""


def is_missing(number: int) -> bool:
    """One in ten."""
    return number % MISSING_EVERY == 3


def drips(number: int) -> bool:
    """One in twenty, none of which is missing."""
    return number % DRIP_EVERY == 7


@contextmanager
def picture_origin(*, latency_ms: int, faulty: bool) -> Iterator[str]:
    """Serve for as long as the context lasts; yields `host:port`."""
    options = ["--latency-ms", str(latency_ms), *(["--faulty"] if faulty else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *options], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def jpegs(count: int = NUM_DISTINCT) -> list[bytes]:
    """Smooth pictures with some noise, 20 to 80 kB, as photographs are; always the same ones."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        width, height = (int(side) for side in random.integers(*SIDES, size=2))
        coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(coarse, np.int16) + random.integers(-12, 13, (height, width, 1)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
        made.append(buffer.getvalue())
    return made


class _Origin(asyncio.Protocol):
    """One connection; requests come one after the other, as none of the clients pipelines."""

    def __init__(self, pictures: list[bytes], *, latency_s: float, faulty: bool) -> None:
        self._pictures, self._latency_s, self._faulty = pictures, latency_s, faulty
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self._latency_s, self._answer, head)

    def _answer(self, head: bytes) -> None:
        keep = b"connection: close" not in head.lower()
        number = head.split(b" ", 2)[1].strip(b"/").removesuffix(b".jpg")
        if not number.isdigit() or (self._faulty and is_missing(int(number))):
            self._send(b"404 Not Found", b"", keep=keep)
        elif self._faulty and drips(int(number)):
            task = asyncio.ensure_future(self._drip(self._pictures[int(number) % len(self._pictures)]))
            task.add_done_callback(lambda _: self._transport.close())
        else:
            self._send(b"200 OK", self._pictures[int(number) % len(self._pictures)], keep=keep)

    def _send(self, status: bytes, body: bytes, *, keep: bool) -> None:
        connection = b"" if keep else b"Connection: close\r\n"
        head = b"HTTP/1.1 %b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n%b\r\n" % (status, len(body), connection)
        self._transport.write(head + body)
        if not keep:
            self._transport.close()

    async def _drip(self, body: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body))
        drop = -(-len(body) // int(DRIP_S / DRIP_WAIT_S))
        for start in range(0, len(body), drop):
            if self._transport.is_closing():
                return
            self._transport.write(body[start : start + drop])
            await asyncio.sleep(DRIP_WAIT_S)


async def _serve(*, latency_s: float, faulty: bool) -> None:
    pictures = jpegs()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Origin(pictures, latency_s=latency_s, faulty=faulty), "127.0.0.1", 0, backlog=1024
    )
    host, port = server.sockets[0].getsockname()[:2]
    print(f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=int, default=0)
    parser.add_argument("--faulty", action="store_true")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(latency_s=arguments.latency_ms / 1000, faulty=arguments.faulty))
