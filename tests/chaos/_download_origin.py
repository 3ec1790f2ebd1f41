"""A web server on loopback with as many pictures as a list asks for, and the list; for runs that kill the downloader."""

import functools
import hashlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.data_helpers import picture

DISTINCT = 200
"""Pictures; row i shows number i % DISTINCT."""
GONE_EVERY, BUSY_EVERY, HASHED_EVERY = 20, 50, 3
MISSING, OVERLOADED = 404, 503


@functools.cache
def picture_of(row: int) -> bytes:
    return picture(row % DISTINCT) if row < DISTINCT else picture_of(row % DISTINCT)


class Origin:
    """What was asked for, and what is answered."""

    def __init__(self, *, latency_s: float, changed: Callable[[int], bool] = lambda _: False) -> None:
        self.requests: Counter[int] = Counter()
        lock = threading.Lock()
        requests = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                kind, _, name = self.path.strip("/").partition("/")
                row = int(name.partition(".")[0]) if name else -1
                if row >= 0:
                    with lock:
                        requests[row] += 1
                    time.sleep(latency_s)
                status = {"gone": MISSING, "busy": OVERLOADED}.get(kind, 200 if row >= 0 else MISSING)
                data = (picture_of(row + 1 if changed(row) else row)) if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Type", "image/webp")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: Any) -> None:  # a killed worker leaves its connections as they are
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def origin(*, latency_s: float, changed: Callable[[int], bool] = lambda _: False) -> Iterator[Origin]:
    for row in range(DISTINCT):
        picture_of(row)
    found = Origin(latency_s=latency_s, changed=changed)
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()
        thread.join()


def write_list(path: Path, *, rows: int, host: str) -> None:
    """Mostly pictures; some are gone, some busy for ever, and a part has the hash of what it must be."""
    table = []
    for row in range(rows):
        kind = "gone" if row % GONE_EVERY == 1 else "busy" if row % BUSY_EVERY == 2 else "picture"
        expected = hashlib.sha256(picture_of(row)).hexdigest() if row % HASHED_EVERY == 0 else None
        url = f"http://{host}/{kind}/{row}.webp"
        table.append({"uid": f"row-{row}", "url": url, "caption": f"picture {row}", "sha256": expected})
    pq.write_table(pa.Table.from_pylist(table), path)
