"""Connections that keep the deadline, bounded in what they read, and kept for the next request to the same origin.

robots.txt and the picture after it go over one connection, and so do the pictures of one site.
"""

import contextlib
import http.client
import io
import select
import socket
import ssl
import threading
import time
from typing import Any

from data_prep.fetch.deadline import Deadline
from data_prep.fetch.policy import FetchError, Origin

BUFFER_BYTES = 1 << 16
MAX_HEADER_BYTES = 3 << 16
"""Of an answer, with everything a server sends before it (1xx answers); the buffer may hold as much of the body."""
MAX_REST_BYTES = 1 << 16
MAX_REST_S = 1.0
"""What is read of an answer nobody needs, so that its connection can serve again."""
MAX_IDLE = 64
MAX_IDLE_S = 10.0


class Answer(http.client.HTTPResponse):
    """Headers read, body not."""

    wants_long_pause = False
    """Its host asked to be left alone for longer than anybody waits."""
    failed = False
    """Reading its body raised something: where the next answer begins is not known, though http.client may say it is closed."""

    def read(self, amt: int | None = None) -> bytes:
        try:
            return super().read(amt)
        except BaseException:
            self.failed = True
            raise

    def _read_next_chunk_size(self) -> int:
        size = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:  # http.client would read all there is, into memory
            raise http.client.HTTPException(f"a chunk of {size} bytes")
        return int(size)


class Connection:
    """One connection to an origin; serves one request at a time."""

    def __init__(self, sock: socket.socket, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._sock = sock
        self._wire = _Wire(sock)
        self._reader = _KeptReader(self._wire, BUFFER_BYTES)

    def ask(self, request: bytes, deadline: Deadline, *, max_body_bytes: int) -> Answer:
        """Send a request; returns the answer up to its headers.

        Args:
            max_body_bytes: as they come over the wire, chunk headers and trailers included.

        Raises:
            OSError, http.client.HTTPException.  `answered` says whether a byte had come.
        """
        self._wire.start(deadline, MAX_HEADER_BYTES, "bad_answer")
        self._sock.settimeout(deadline.remaining_s())
        self._sock.sendall(request)
        response = self._next_answer()
        while response.status < 200 and response.status != 101:  # early hints and the like come before the answer
            response = self._next_answer()
        self._wire.start(deadline, max_body_bytes, "too_large")
        return response

    def _next_answer(self) -> Answer:
        response = Answer(self, method="GET")  # type: ignore[arg-type]
        response.begin()
        return response

    @property
    def answered(self) -> bool:
        return self._wire.received > 0

    def makefile(self, _mode: str) -> io.BufferedReader:
        return self._reader

    def is_reusable_after(self, response: Answer, deadline: Deadline) -> bool:
        """Whether the answer ended cleanly where it should; a short rest of it is read for that."""
        try:
            if response.status < 200 or response.will_close or response.failed:
                return False
            if not response.isclosed():
                if (response.length is None and not response.chunked) or (response.length or 0) > MAX_REST_BYTES:
                    return False
                self._wire.start(deadline.at_most(MAX_REST_S), MAX_REST_BYTES, "too_large")
                while response.read(BUFFER_BYTES):  # not all at once: that takes the memory a chunk announces before it comes
                    pass
            return response.isclosed() and not response.length and self._reader.is_empty()
        except Exception:  # whatever a hostile rest provokes, nobody needs it
            return False

    def is_silent(self) -> bool:
        """Whether nothing came while nobody asked: neither bytes nor the end."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLERR | select.POLLHUP)
        return not poll.poll(0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()


class ConnectionPool:
    """Idle connections, a bounded number for a bounded time.  Thread-safe."""

    def __init__(self, *, max_idle: int = MAX_IDLE, max_idle_s: float = MAX_IDLE_S) -> None:
        self._max_idle, self._max_idle_s = max_idle, max_idle_s
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def take(self, origin: Origin) -> Connection | None:
        """The connection used last of those that are still good."""
        while True:
            with self._lock:
                found = next((one for one in reversed(self._idle) if one.origin == origin), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if time.monotonic() - found.idle_since < self._max_idle_s and found.is_silent():
                return found
            found.close()

    def put(self, connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(connection)
            too_many = self._idle.pop(0) if len(self._idle) > self._max_idle else None
        if too_many:
            too_many.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class _Wire(io.RawIOBase):
    """The reading side of a socket: a read gets what is left of the deadline, so a slow drip ends too, and so does a flood."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = Deadline(0)
        self._left, self._too_much = 0, "bad_answer"
        self._dry = False
        self.received = 0
        """Bytes since the request was sent or the headers ended."""

    def start(self, deadline: Deadline, max_bytes: int, too_much: str) -> None:
        self._deadline, self._left, self._too_much, self.received = deadline, max_bytes, too_much, 0

    def set_dry(self, dry: bool) -> None:
        """A dry one gives no bytes: to see what the buffer above it holds."""
        self._dry = dry

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._dry:
            return 0
        if self._left <= 0:
            raise FetchError(self._too_much, "the answer goes on and on")
        self._sock.settimeout(self._deadline.remaining_s())
        count = self._sock.recv_into(buffer)
        self._left -= count
        self.received += count
        return count


class _KeptReader(io.BufferedReader):
    """`http.client` closes its file after every answer; this one stays for the next."""

    raw: _Wire

    def close(self) -> None:
        pass

    def is_empty(self) -> bool:
        self.raw.set_dry(True)
        try:
            return not self.peek(1)
        finally:
            self.raw.set_dry(False)
