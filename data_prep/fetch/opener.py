"""The opener that img2dataset's `urllib.request.urlopen` goes through: every rule of the fetch policy is kept here.

Installed with `urllib.request.install_opener`, which reaches this process only.
"""

import contextlib
import hashlib
import io
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from typing import Any, NamedTuple

from data_prep.fetch.body_memory import FREE_BYTES, BodyMemory
from data_prep.fetch.connections import Answer
from data_prep.fetch.deadline import Deadline
from data_prep.fetch.policy import MAX_URL_CHARACTERS, FetchError, FetchPolicy, redirected
from data_prep.fetch.robots import REDIRECTS, RobotsTxt, refused_by_tag
from data_prep.fetch.web import Web, named_errors
from infra import images

READ_BLOCK_BYTES = 1 << 16
MAX_CONTENT_TYPE_CHARACTERS = 200
_ACCEPT = "image/webp,image/png,image/jpeg,*/*;q=0.5"
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

    url: str
    status: int
    headers: HTTPMessage


class Sites(NamedTuple):
    """What is known of sites and shared by all who fetch from them."""

    web: Web
    robots: RobotsTxt
    memory: BodyMemory

    @classmethod
    def under(cls, policy: FetchPolicy) -> "Sites":
        web = Web(policy)
        return cls(web, RobotsTxt(policy, web), BodyMemory())


class HardenedOpener(urllib.request.OpenerDirector):
    """Fetches pictures under a policy.  Thread-safe; `records` grows by one for every URL asked for.

    Args:
        retries: more attempts after a passing failure.
        sites: knowledge to share with other openers under the same policy.
    """

    def __init__(self, policy: FetchPolicy, *, retries: int = 0, sites: Sites | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.retries = retries
        self.records: list[RequestRecord] = []
        self.sites = sites or Sites.under(policy)
        self._lock = threading.Lock()

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Response:  # noqa: ARG002
        """Fetch one picture.  The caller's timeout is ignored: the policy's deadline is stricter.

        Raises:
            FetchError: there is no picture; `reason` says why.
        """
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        for attempt in range(self.retries + 1):
            trace: dict[str, Any] = {"final_url": url, "http_status": None, "content_type": None}
            try:
                with _nothing_worse(url):
                    response = self._fetch(url, trace)
            except FetchError as error:
                if error.passing and not error.later and attempt < self.retries:
                    time.sleep(self.policy.retry_wait_s * 2**attempt)
                    continue
                self._record(RequestRecord(url, **trace, reason=error.reason, attempts=attempt + 1, fetched_at=time.time()))
                raise
            body = response.getvalue()
            digest = hashlib.sha256(body).hexdigest()
            self._record(
                RequestRecord(
                    url, **trace, reason=None, attempts=attempt + 1, fetched_at=time.time(), num_bytes=len(body), sha256=digest
                )
            )
            return response
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _record(self, record: RequestRecord) -> None:
        with self._lock:
            self.records.append(record)

    def _fetch(self, url: str, trace: dict[str, Any]) -> Response:
        deadline = Deadline(self.policy.timeout_s)
        for _ in range(self.policy.max_redirects + 1):
            trace["final_url"] = url[:MAX_URL_CHARACTERS]
            with named_errors(url):
                spacing_s = self.sites.robots.spacing_s(url, deadline)
            with self.sites.web.get(
                url, deadline, accept=_ACCEPT, max_body_bytes=self._max_wire_bytes, spacing_s=spacing_s
            ) as answer:
                trace["http_status"] = answer.status
                trace["content_type"] = (answer.headers.get("Content-Type") or "")[:MAX_CONTENT_TYPE_CHARACTERS] or None
                location = answer.headers.get("Location")
                if answer.status not in REDIRECTS or not location:
                    self._check_headers(answer, url)
                    return self._read(answer, url, deadline)
            url = redirected(url, location)
        raise FetchError("too_many_redirects", f"more than {self.policy.max_redirects} redirects, the last to {url}")

    @property
    def _max_wire_bytes(self) -> int:
        """With the lengths and extensions that chunks carry; a server that needs more for them is up to something."""
        return self.policy.max_bytes + self.policy.max_bytes // 4 + 4 * READ_BLOCK_BYTES

    def _check_headers(self, answer: Answer, url: str) -> None:
        """What can be refused before the body is read is refused here."""
        if answer.status != 200:
            raise FetchError(
                f"http_{answer.status}", f"{url} answered {answer.status} {answer.reason}", later=answer.wants_long_pause
            )
        tags = answer.headers.get_all("X-Robots-Tag") or []
        refusing = self.policy.disallowed_robots_directives
        if directive := refused_by_tag(tags, token=self.policy.user_agent_token, directives=refusing):
            raise FetchError("robots_disallowed", f"{url} answered with X-Robots-Tag {directive!r}")
        limit, expected = self.policy.max_bytes, answer.length
        if expected is not None and expected > limit:
            raise FetchError("too_large", f"{url} announces {expected:,} bytes, more than the {limit:,} allowed")
        if (encoding := answer.headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
            raise FetchError("not_an_image", f"{url} answered with content encoding {encoding!r}, which was not asked for")

    def _read(self, answer: Answer, url: str, deadline: Deadline) -> Response:
        """A whole picture, known to be one."""
        expected = answer.length  # None when chunked or until the connection closes
        body = self._read_body(answer, url, deadline)
        if expected is not None and len(body) < expected:
            raise FetchError("truncated", f"{url} ended after {len(body):,} of {expected:,} bytes")
        try:
            images.probe(body, max_pixels=self.policy.max_pixels)
        except images.ImageError as error:
            raise FetchError(error.reason, f"{url}: {error}") from error
        response = Response(body)
        response.url, response.status, response.headers = url, answer.status, answer.headers
        return response

    def _read_body(self, answer: Answer, url: str, deadline: Deadline) -> bytes:
        """What comes, up to the limit; only what begins like a picture is read on."""
        limit, expected = self.policy.max_bytes, answer.length
        start = bytearray()
        while len(start) <= min(FREE_BYTES, limit):
            block = answer.read(READ_BLOCK_BYTES)
            if not start and not block.startswith(_SIGNATURES) and len(block) >= 8:
                raise FetchError("not_an_image", f"{url} is no JPEG, PNG or WebP picture (it starts with {block[:12]!r})")
            if not block:
                return bytes(start)
            start += block
        if len(start) <= limit:
            with self.sites.memory.room_for(expected or limit, deadline) as room:
                room.write(start)
                while block := answer.read(READ_BLOCK_BYTES):
                    if room.tell() + len(block) > len(room):
                        break
                    room.write(block)
                else:
                    return room[: room.tell()]
        raise FetchError("too_large", f"{url} sent more than the {limit:,} bytes allowed")


_SITES: dict[FetchPolicy, Sites] = {}
_SITES_LOCK = threading.Lock()


def sites_of_process(policy: FetchPolicy) -> Sites:
    """Those that all partitions of a process share: a site is asked for its robots.txt once, not once a partition."""
    with _SITES_LOCK:
        if policy not in _SITES:
            for sites in _SITES.values():
                sites.web.connections.close()
            _SITES.clear()  # a process works under one policy at a time
            _SITES[policy] = Sites.under(policy)
        return _SITES[policy]


@contextlib.contextmanager
def installed(opener: HardenedOpener) -> Iterator[HardenedOpener]:
    """Make `urllib.request.urlopen` of this process go through the opener, and put back what was there."""
    before = urllib.request._opener  # type: ignore[attr-defined]
    urllib.request.install_opener(opener)
    try:
        yield opener
    finally:
        urllib.request.install_opener(before)


@contextlib.contextmanager
def _nothing_worse(url: str) -> Iterator[None]:
    """Whatever else a hostile answer provokes costs this one picture, not the partition."""
    try:
        yield
    except FetchError:
        raise
    except Exception as problem:
        raise FetchError("bad_answer", f"{url}: {problem!r}") from problem
