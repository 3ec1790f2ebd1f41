"""The opener that img2dataset's `urllib.request.urlopen` goes through: every rule of the fetch policy is kept here.

It speaks HTTP through `http.client` on a socket it connected itself: no proxies, no other schemes, no hidden decompression.
Installed with `urllib.request.install_opener`, which reaches this process only.
"""

import contextlib
import hashlib
import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from data_prep.fetch_policy import FetchError, FetchPolicy, ascii_host, is_odd_address, is_public, port_of, url_problem
from infra import images

READ_BLOCK_BYTES = 1 << 16
_REDIRECTS = {301, 302, 303, 307, 308}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


class RequestRecord(NamedTuple):
    """What became of one URL; the last attempt counts."""

    url: str
    final_url: str
    http_status: int | None
    content_type: str | None
    reason: str | None
    """None for a picture."""
    attempts: int
    fetched_at: float
    """When the last attempt ended, seconds since the epoch."""
    num_bytes: int | None = None
    """Of the picture as received."""
    sha256: str | None = None
    """Hex, of the bytes as received."""


class Response(io.BytesIO):
    """A whole picture, in the shape `urlopen` returns."""

    def __init__(self, body: bytes, *, url: str, status: int, headers: http.client.HTTPMessage) -> None:
        super().__init__(body)
        self.url, self.status, self.headers = url, status, headers


class HardenedOpener(urllib.request.OpenerDirector):
    """Fetches pictures under a policy.  Thread-safe; `records` grows by one for every URL asked for."""

    def __init__(self, policy: FetchPolicy, *, retries: int = 0) -> None:
        super().__init__()
        self.policy = policy
        self.retries = retries
        self.records: list[RequestRecord] = []
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Semaphore] = {}
        self._resolved: dict[tuple[str, int], list[str]] = {}
        self._tls = ssl.create_default_context()

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Response:  # noqa: ARG002
        """Fetch one picture.  The caller's timeout is ignored: the policy's deadline is stricter.

        Raises:
            FetchError: there is no picture; `reason` says why.
        """
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        for attempt in range(self.retries + 1):
            trace: dict[str, Any] = {"final_url": url, "http_status": None, "content_type": None}
            try:
                with self._turn(url):
                    response = self._fetch(url, trace)
            except Exception as problem:
                # whatever a hostile answer provokes costs this one picture, not the partition
                error = problem if isinstance(problem, FetchError) else FetchError("connection", f"{url}: {problem!r}")
                if error.passing and attempt < self.retries:
                    time.sleep(self.policy.retry_wait_s * 2**attempt)
                    continue
                self._record(RequestRecord(url, **trace, reason=error.reason, attempts=attempt + 1, fetched_at=time.time()))
                raise error from problem.__cause__
            body = response.getvalue()
            digest = hashlib.sha256(body).hexdigest()
            self._record(
                RequestRecord(
                    url, **trace, reason=None, attempts=attempt + 1, fetched_at=time.time(), num_bytes=len(body), sha256=digest
                )
            )
            return response
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _turn(self, url: str) -> threading.Semaphore:
        """Politeness: a site sees at most so many requests of ours at once (where a redirect leads is not counted)."""
        with self._lock:
            return self._turns.setdefault(
                url.split("/")[2].lower() if url.count("/") > 1 else "", threading.Semaphore(self.policy.max_requests_per_host)
            )

    def _record(self, record: RequestRecord) -> None:
        with self._lock:
            self.records.append(record)

    def _fetch(self, url: str, trace: dict[str, Any]) -> Response:
        deadline = _Deadline(self.policy.timeout_s)
        for _ in range(self.policy.max_redirects + 1):
            trace["final_url"] = url
            with self._request(url, deadline) as response:
                trace["http_status"] = response.status
                trace["content_type"] = response.headers.get("Content-Type")
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or not location:
                    if response.status != 200:
                        raise FetchError(f"http_{response.status}", f"{url} answered {response.status} {response.reason}")
                    return Response(self._read(response, url), url=url, status=200, headers=response.headers)
            try:
                url = urljoin(url, location.strip())
            except ValueError as error:
                raise FetchError("bad_url", f"{url} redirects to {location[:200]!r}: {error}") from error
        raise FetchError("too_many_redirects", f"more than {self.policy.max_redirects} redirects, the last to {url}")

    @contextlib.contextmanager
    def _request(self, url: str, deadline: "_Deadline") -> Iterator[http.client.HTTPResponse]:
        if problem := url_problem(url):
            raise FetchError("bad_url", f"{url[:200]!r} {problem}")
        parts = urlsplit(url)
        host, port = ascii_host(parts.hostname or ""), port_of(parts)
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
            f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?[]')}" if parts.query else ""
        )
        connection = http.client.HTTPConnection(host, port)
        with contextlib.ExitStack() as opened:
            with _named_errors(url):
                sock = opened.enter_context(self._connect(host, port, tls=parts.scheme == "https", deadline=deadline))
                connection.sock = _DeadlineSocket(sock, deadline)
                headers = {
                    "Host": (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else ""),
                    "User-Agent": self.policy.user_agent,
                    "Accept": "image/webp,image/png,image/jpeg,*/*;q=0.5",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                }
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
            with _named_errors(url):
                yield response

    def _connect(self, host: str, port: int, *, tls: bool, deadline: "_Deadline") -> socket.socket:
        plain = self._connect_to_one(self._resolve(host, port, deadline), port, deadline)
        if not tls:
            return plain
        try:
            plain.settimeout(deadline.remaining_s())
            return self._tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def _connect_to_one(self, addresses: list[str], port: int, deadline: "_Deadline") -> socket.socket:
        *others, last = addresses
        for address in others:
            with contextlib.suppress(OSError):  # a name with IPv6 and IPv4 is tried until one answers
                return socket.create_connection((address, port), timeout=self._connect_timeout_s(deadline))
        return socket.create_connection((last, port), timeout=self._connect_timeout_s(deadline))

    def _connect_timeout_s(self, deadline: "_Deadline") -> float:
        return min(self.policy.connect_timeout_s, deadline.remaining_s())

    def _resolve(self, host: str, port: int, deadline: "_Deadline") -> list[str]:
        """The addresses to connect to, each of them allowed: one forbidden address spoils the name."""
        with self._lock:
            if known := self._resolved.get((host, port)):
                return known
        named = self.policy.allows_private(host, port)
        if not named and is_odd_address(host):
            raise FetchError("forbidden_address", f"{host} is an address in an unusual notation")
        addresses = _look_up(host, port, deadline)
        for address in addresses:
            try:
                allowed = named or is_public(ipaddress.ip_address(address))
            except ValueError:  # a scoped address, `fe80::1%eth0`
                allowed = False
            if not allowed:
                raise FetchError("forbidden_address", f"{host} is at {address}, which is not in the public internet")
        with self._lock:
            return self._resolved.setdefault((host, port), addresses)

    def _read(self, response: http.client.HTTPResponse, url: str) -> bytes:
        """The body, bounded by bytes and pixels, and known to be a picture."""
        limit = self.policy.max_bytes
        expected = response.length  # None when chunked or until the connection closes
        if expected is not None and expected > limit:
            raise FetchError("too_large", f"{url} announces {expected:,} bytes, more than the {limit:,} allowed")
        if (encoding := response.headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
            raise FetchError("not_an_image", f"{url} answered with content encoding {encoding!r}, which was not asked for")
        body = bytearray()
        while block := response.read(READ_BLOCK_BYTES):
            if not body and not block.startswith(_SIGNATURES) and len(block) >= 8:
                raise FetchError("not_an_image", f"{url} is no JPEG, PNG or WebP picture (it starts with {block[:12]!r})")
            body += block
            if len(body) > limit:
                raise FetchError("too_large", f"{url} sent more than the {limit:,} bytes allowed")
        if expected is not None and len(body) < expected:
            raise FetchError("truncated", f"{url} ended after {len(body):,} of {expected:,} bytes")
        data = bytes(body)
        try:
            images.probe(data, max_pixels=self.policy.max_pixels)
        except images.ImageError as error:
            raise FetchError(error.reason, f"{url}: {error}") from error
        return data


@contextlib.contextmanager
def installed(opener: HardenedOpener) -> Iterator[HardenedOpener]:
    """Make `urllib.request.urlopen` of this process go through the opener, and put back what was there."""
    before = urllib.request._opener  # type: ignore[attr-defined]
    urllib.request.install_opener(opener)
    try:
        yield opener
    finally:
        urllib.request.install_opener(before)


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining_s(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of the whole request has passed")
        return left


class _DeadlineSocket:
    """As much of a socket as `http.client` uses; each read gets what is left of the deadline, so a slow drip ends too.

    `http.client` closes it before the body is read; the real socket is closed by the one who opened it.
    """

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.remaining_s())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._deadline), READ_BLOCK_BYTES)

    def close(self) -> None:
        pass


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        super().__init__()
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.remaining_s())
        return self._sock.recv_into(buffer)


def _look_up(host: str, port: int, deadline: _Deadline) -> list[str]:
    """Addresses of a name.  In a thread of its own, because `getaddrinfo` knows no deadline."""
    answer: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = answer.get(timeout=deadline.remaining_s())
    except queue.Empty:
        raise FetchError("dns", f"no answer for {host} in time") from None
    if isinstance(result, list) and result:
        return result
    raise FetchError("dns", f"{host} cannot be resolved: {result}")


@contextlib.contextmanager
def _named_errors(url: str) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP raise into a FetchError with a stable reason."""
    try:
        yield
    except FetchError:
        raise
    except TimeoutError as error:
        raise FetchError("timeout", f"{url} took too long: {error}") from error
    except ssl.SSLError as error:
        raise FetchError("tls", f"{url}: {error}") from error
    except http.client.IncompleteRead as error:
        raise FetchError("truncated", f"{url} ended early: {error}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError("connection", f"{url}: {type(error).__name__}: {error}") from error
