"""An origin that does everything wrong: one kind of fault a path, `/KIND/NUMBER.jpg`, and a host, `KIND.hNUMBER.faults.test`.

Speaks on loopback, in a process of its own, byte by byte: no library would send such answers.
"""

import asyncio
import gzip
import io
import multiprocessing
import resource
import socket
import ssl
import struct
import tempfile
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.unit.data_helpers import picture, write_certificate

HOST = "127.0.0.1"
DOMAIN = "faults.test"
DRIP_S = 0.05
SILENT_S = 30.0
Out = asyncio.StreamWriter
Fault = Callable[[Out], Awaitable[None]]

JPEG = picture(1, width=64, height=64, image_format="JPEG")


def _png(width: int, height: int) -> bytes:
    """A small PNG that claims a size."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0"), b"IEND"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


def _answer(body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = None) -> Fault:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    data = ("\r\n".join(lines) + "\r\n\r\n").encode() + body

    async def send(out: Out) -> None:
        out.write(data)

    return send


def _raw(data: bytes) -> Fault:
    async def send(out: Out) -> None:
        out.write(data)
        await out.drain()
        out.close()

    return send


def _endless(start: bytes, block: bytes) -> Fault:
    async def send(out: Out) -> None:
        out.write(start)
        while True:
            out.write(block)
            await out.drain()

    return send


def _drip(start: bytes) -> Fault:
    async def send(out: Out) -> None:
        out.write(start)
        while True:
            out.write(b"a")
            await out.drain()
            await asyncio.sleep(DRIP_S)

    return send


async def _silence(_: Out) -> None:
    await asyncio.sleep(SILENT_S)


async def _close(out: Out) -> None:
    out.close()


async def _reset(out: Out) -> None:
    sock: socket.socket = out.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    out.transport.abort()


def _chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_BLOCK = b"\0" * 65536
_GOOD = _answer(JPEG)
_NO_ROBOTS = _answer(b"not here", "404 Not Found")
_MANY_AGENTS = "".join(f"User-agent: a{n}\n" for n in range(15_000)) + "Disallow: /*a*b*c*d*e*f*g$\n" * 8_000


class Kind(NamedTuple):
    """One kind of fault."""

    reasons: tuple[str | None, ...]
    """The words that are right for it; None: a picture all the same."""
    picture: Fault = _GOOD
    robots: Fault | None = None
    """Answer for robots.txt; None: there is none."""
    urls_per_host: int = 100
    scheme: str = "http"


def kinds(canary: str) -> dict[str, Kind]:
    """All of them.  `canary` is a host and port that must never be connected to."""

    def leads_to(place: str) -> Fault:
        return _answer(b"", "302 Found", f"Location: {place}")

    codes = (401, 403, 404, 410, 429, 451, 500, 502, 503, 504)
    return {f"status_{code}": Kind((f"http_{code}",), _answer(b"no", f"{code} No")) for code in codes} | {
        "retry_after_seconds": Kind(("http_429",), _answer(b"", "429 No", "Retry-After: 1"), urls_per_host=1),
        "retry_after_date": Kind(
            ("http_503", "host_busy"), _answer(b"", "503 No", "Retry-After: Fri, 31 Dec 2100 23:59:59 GMT")
        ),
        "retry_after_nonsense": Kind(("http_429",), _answer(b"", "429 No", "Retry-After: in a while")),
        "reset": Kind(("connection",), _reset),
        "closed_without_answer": Kind(("connection",), _close),
        "not_http": Kind(("bad_answer",), _raw(b"SSH-2.0-OpenSSH_9.9\r\n")),
        "truncated": Kind(("truncated",), _raw(_OK + b"Content-Length: 100000\r\n\r\n" + JPEG)),
        "truncated_chunk": Kind(("truncated",), _raw(_CHUNKED + b"ffff\r\n" + JPEG)),
        "slow_body": Kind(("timeout",), _drip(_OK + b"\r\n" + JPEG)),
        "slow_headers": Kind(("timeout",), _drip(_OK + b"X-Slow: ")),
        "never_answers": Kind(("timeout",), _silence),
        "endless_body": Kind(("too_large",), _endless(_OK + b"\r\n" + JPEG, _BLOCK)),
        "endless_headers": Kind(("bad_answer",), _endless(_OK, b"X-More: and more\r\n" * 100)),
        "endless_header": Kind(("bad_answer",), _endless(_OK + b"X-Long: ", b"a" * 10_000)),
        "endless_continue": Kind(("bad_answer",), _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)),
        "endless_chunk_extensions": Kind(
            ("too_large",), _endless(_CHUNKED + _chunk(JPEG), _chunk(b"a", b";" + b"x" * 60_000) * 10)
        ),
        "endless_trailers": Kind(
            ("too_large",), _endless(_CHUNKED + _chunk(JPEG) + b"0\r\n", b"X: " + b"a" * 60_000 + b"\r\n")
        ),
        "chunk_of_minus_one": Kind(("bad_answer",), _endless(_CHUNKED + b"-1\r\n", _BLOCK)),
        "negative_length": Kind(("too_large",), _endless(_OK + b"Content-Length: -1\r\n\r\n" + JPEG, _BLOCK)),
        "announced_too_large": Kind(("too_large",), _answer(JPEG, length=10**15)),
        "gzip_bomb": Kind(("not_an_image",), _answer(gzip.compress(bytes(10**8)), "200 OK", "Content-Encoding: gzip")),
        "gzipped_picture": Kind(("not_an_image",), _answer(gzip.compress(JPEG), "200 OK", "Content-Encoding: gzip")),
        "html": Kind(("not_an_image",), _answer(b"<!doctype html><p>Gone" * 100, "200 OK", "Content-Type: image/jpeg")),
        "gif": Kind(("not_an_image",), _answer(_gif())),
        "empty_body": Kind(("not_an_image",), _answer()),
        "pixel_bomb": Kind(("too_many_pixels",), _answer(_png(50_000, 50_000))),
        "damaged_picture": Kind(("not_an_image", "truncated"), _answer(JPEG[:4] + b"\x55" * len(JPEG))),
        "redirect_loop": Kind(("too_many_redirects",), leads_to("?again")),
        "redirect_private": Kind(("forbidden_address",), leads_to(f"http://{canary}/a.jpg")),
        "redirect_metadata": Kind(("forbidden_address",), leads_to("http://169.254.169.254/latest/meta-data/")),
        "redirect_file": Kind(("bad_url",), leads_to("file:///etc/passwd")),
        "redirect_ftp": Kind(("bad_url",), leads_to(f"ftp://{canary}/a.jpg")),
        "redirect_data": Kind(("bad_url",), leads_to("data:image/gif;base64,R0lGODlhAQABAAAAACw=")),
        "redirect_user": Kind(("bad_url",), leads_to(f"http://example.com@{canary}/a.jpg")),
        "self_signed": Kind(("tls",), scheme="https"),
        "robots_tag": Kind(("robots_disallowed",), _drip(_OK + b"X-Robots-Tag: noai\r\n\r\n" + JPEG)),
        "robots_disallow": Kind(("robots_disallowed",), robots=_answer(b"User-agent: *\nDisallow: /")),
        "robots_500": Kind(("robots_unreachable",), robots=_answer(b"", "500 No")),
        "robots_slow": Kind(("robots_unreachable",), robots=_drip(_OK + b"\r\n#")),
        "robots_redirect_private": Kind(("robots_unreachable",), robots=leads_to(f"http://{canary}/robots.txt")),
        "robots_endless": Kind((None,), robots=_endless(_OK + b"\r\n", b"# and so on\n" * 1000)),
        "robots_of_many": Kind((None,), robots=_answer(_MANY_AGENTS.encode())),
        "unknown_name": Kind(("dns",)),
        "good": Kind((None,)),
        "good_in_chunks": Kind((None,), _raw(_CHUNKED + _chunk(JPEG[:500]) + _chunk(JPEG[500:], b";a=b") + b"0\r\n\r\n")),
        "good_after_redirect": Kind((None,), leads_to("/good/0.jpg")),
    }


class Ports(NamedTuple):
    http: int
    https: int
    canary: int


class _Server:
    """Serves in the event loop of its own process."""

    def __init__(self) -> None:
        self.touched = 0
        self.kinds: dict[str, Kind] = {}

    async def start(self, certificate: str) -> Ports:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        canary = await asyncio.start_server(self._touch, HOST, 0)
        http = await asyncio.start_server(self._serve, HOST, 0, backlog=1024)
        https = await asyncio.start_server(self._serve, HOST, 0, backlog=1024, ssl=context)
        ports = Ports(*(server.sockets[0].getsockname()[1] for server in (http, https, canary)))
        self.kinds = kinds(f"{HOST}:{ports.canary}")
        return ports

    async def _serve(self, reader: asyncio.StreamReader, out: Out) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):  # the client hung up
            while not out.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                path = head.split(" ", 2)[1]
                if path == "/robots.txt":
                    kind = self.kinds[kind_of_host(head.partition("Host: ")[2])]
                    await (kind.robots or _NO_ROBOTS)(out)
                else:
                    await self.kinds[path.split("/")[1]].picture(out)
                await out.drain()
        out.close()

    async def _touch(self, _: asyncio.StreamReader, out: Out) -> None:
        self.touched += 1
        out.close()


def host_of(kind: str, number: int) -> str:
    return f"{kind.replace('_', '-')}.h{number}.{DOMAIN}"


def kind_of_host(host: str) -> str:
    return host.partition(".")[0].replace("-", "_")


@contextmanager
def faulty_origin() -> Iterator[tuple[Ports, Callable[[], int]]]:
    """The origin's ports, and how often the canary was connected to so far."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="hyperclip-origin-") as folder:
        process = context.Process(target=_in_process, args=(theirs, write_certificate(Path(folder))), daemon=True)
        process.start()
        try:
            yield ours.recv(), lambda: _touched(ours)
        finally:
            process.kill()
            process.join()


def _touched(connection: Connection) -> int:
    connection.send("touched?")
    return connection.recv()


def _in_process(connection: Connection, certificate: str) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # silent connections stay for a while
    asyncio.run(_in_loop(connection, certificate))


async def _in_loop(connection: Connection, certificate: str) -> None:
    server = _Server()
    connection.send(await server.start(certificate))
    asyncio.get_running_loop().add_reader(connection.fileno(), lambda: connection.send((connection.recv(), server.touched)[1]))
    await asyncio.Event().wait()
