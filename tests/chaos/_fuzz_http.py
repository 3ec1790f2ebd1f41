"""HTTP for `fuzz`: calls as bytes on the wire, so that nothing puts them right on the way, and whole answers."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

ANSWERED_WITHIN_S = 120.0
HEAD_LIMIT = 2**17

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Call:
    """One request."""

    kind: str
    """What is odd about it, for the tally."""
    method: str
    target: bytes
    """Path and query."""
    headers: Headers = ()
    body: bytes = b""
    chunk_size: int | None = None
    """The body goes in chunks of this size, without a length."""
    num_pictures: int = 0
    """How many results a good answer has; 0 where that is not known."""

    def on_the_wire(self) -> bytes:
        lines = [self.method.encode() + b" " + self.target + b" HTTP/1.1", b"host: 127.0.0.1"]
        lines += [name + b": " + value for name, value in self.headers]
        body = self.body
        if self.chunk_size is not None:
            lines.append(b"transfer-encoding: chunked")
            starts = range(0, len(body), self.chunk_size)
            chunks = [body[start : start + self.chunk_size] for start in starts]
            body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        elif body or self.method not in ("GET", "HEAD"):
            lines.append(b"content-length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    def json(self) -> Any:
        return json.loads(self.body)


class DroppedError(Exception):
    """A connection that ended, or stayed silent, before its answer was whole."""


class Connection:
    """Kept for call after call."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, call: Call) -> Answer:
        """Raises DroppedError: no whole answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=HEAD_LIMIT)
        reader, writer = self._streams
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                writer.write(call.on_the_wire())
                answer = await _read(reader, has_body=call.method != "HEAD")
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError) as error:
            self.close()
            raise DroppedError(repr(error)) from error
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read(reader: asyncio.StreamReader, *, has_body: bool) -> Answer:
    """The next answer; `100 Continue` is none."""
    while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status >= 200:
            break
    fields = (line.partition(":") for line in lines[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    if not has_body or status in (204, 304):
        return Answer(status, headers, b"")
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, await _chunks(reader))
    return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while length := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(length + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(parts)
