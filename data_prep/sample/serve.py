"""A web server for the bundled sample, on loopback: real HTTP, with the dead and odd links of the real web."""

import errno
import http.server
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from data_prep.sample.pictures import read_sample
from infra.errors import BadInputError

HOST = "127.0.0.1"
_PAGE = b"<!doctype html><title>Gone</title><p>The picture you are looking for has moved to our new gallery."


@contextmanager
def serving_sample(port: int = 0) -> Iterator[str]:
    """Serve `/<uid>.webp` for every picture of the sample; yields the base URL.  Port 0 takes a free one.

    Raises:
        BadInputError: the port is taken or may not be used.
    """
    pictures = dict(zip(*(read_sample()[name].to_pylist() for name in ("uid", "image")), strict=True))
    handler = type("SampleHandler", (_Handler,), {"pictures": pictures})
    try:
        server = _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "something else listens there" if taken else str(error)
        raise BadInputError(f"cannot serve the sample on {HOST}:{port}: {why}; choose another port") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True  # a port that a run before has just left is free
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is its own business."""


class _Handler(http.server.BaseHTTPRequestHandler):
    pictures: dict[str, bytes]
    timeout = 30

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        folder, uid = _split(path)
        picture = self.pictures.get(uid)
        if folder in ("", "copy") and picture:
            self._answer(picture)
        elif folder == "moved" and picture:
            self._redirect(f"/{uid}.webp")
        elif folder == "cut" and picture:
            self._answer(picture[: len(picture) // 2], announced=len(picture))
        elif path == "/page.html":
            self._answer(_PAGE, content_type="text/html")
        elif path == "/oversized.webp":
            self._answer(b"", announced=10**12)
        elif path == "/bomb.png":
            self._answer(_claiming_png(60_000, 60_000), content_type="image/png")
        elif path == "/loop":
            self._redirect("/loop")
        elif path == "/inside":
            self._redirect("http://169.254.169.254/latest/meta-data/")
        elif status := re.fullmatch(r"/status/(\d{3})", path):
            self._answer(b"", status=int(status[1]), content_type="text/plain")
        else:
            self._answer(_PAGE, status=HTTPStatus.NOT_FOUND, content_type="text/html")

    def _answer(
        self, body: bytes, *, status: int = HTTPStatus.OK, content_type: str = "image/webp", announced: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, location: str) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Silent: thousands of requests are not news."""


def _split(path: str) -> tuple[str, str]:
    found = re.fullmatch(r"/(?:(copy|moved|cut)/)?([A-Za-z0-9_-]+)\.webp", path)
    return (found[1] or "", found[2]) if found else ("-", "")


def _claiming_png(width: int, height: int) -> bytes:
    """A small PNG that claims to be large."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0"), b"IEND"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
