"""What may be fetched and how: schemes, sizes, times and manners, and the stable words for what went wrong."""

import contextlib
import ipaddress
import re
from functools import cached_property
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from infra.config import StrictModel

MAX_URL_CHARACTERS = 4096
MAX_HOST_CHARACTERS = 253
MAX_MESSAGE_CHARACTERS = 1000


class FetchPolicy(StrictModel):
    """Limits of every request the downloader makes."""

    max_bytes: PositiveInt = 20_000_000
    """Of one picture as received."""
    max_pixels: PositiveInt = 64_000_000
    """Read from the header, before anything is decoded."""
    timeout_s: PositiveFloat = 20.0
    """From first look-up to last byte, redirects and robots.txt included; one attempt.  Waiting for a turn does not count."""
    connect_timeout_s: PositiveFloat = 5.0
    max_redirects: NonNegativeInt = 5
    max_requests_per_host: PositiveInt = 16
    """Under way at once from one task, wherever redirects lead; further ones wait their turn."""
    host_spacing_s: float = Field(default=0.0, ge=0)
    """Between the beginnings of two requests of one task to a host; a longer Crawl-delay of robots.txt replaces it."""
    max_wait_s: float = Field(default=30.0, ge=0)
    """For a turn at a host; also the longest Retry-After that is waited for, and Crawl-delay that is kept.  Beyond it a URL is
    left to a later round (`host_busy`, `http_429`)."""
    retry_wait_s: float = Field(default=0.5, ge=0)
    """Before the first retry of a passing failure; doubles each time."""
    robots_txt: bool = True
    """Ask every origin's robots.txt and keep to it.  False is for servers of your own."""
    disallowed_robots_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Values of the X-Robots-Tag header that refuse the use of a picture."""
    allowed_private_hosts: tuple[str, ...] = ()
    """Hosts (`host` or `host:port`, as written in the URL) that may lie in a private network; all others there are refused."""
    user_agent: str = Field(default="hyperclip/0.1 (image download; no contact configured)", pattern=r"^[\x20-\x7e]+$")
    """Say who fetches and how to reach you: site owners read it.  Its first word is the name looked for in robots.txt."""

    @property
    def user_agent_token(self) -> str:
        """The name in robots.txt and X-Robots-Tag, in lower case."""
        found = re.match(r"[A-Za-z0-9_-]+", self.user_agent)
        return found[0].lower() if found else "hyperclip"

    def allows_private(self, host: str, port: int) -> bool:
        bracketed = f"[{host}]" if ":" in host else host
        return not self._allowed.isdisjoint({host.lower(), bracketed.lower(), f"{bracketed.lower()}:{port}"})

    @cached_property
    def _allowed(self) -> frozenset[str]:
        return frozenset(entry.lower() for entry in self.allowed_private_hosts)


REASONS = (
    *("bad_url", "forbidden_address", "dns", "connection", "tls", "timeout", "bad_answer", "too_many_redirects"),
    *("too_large", "too_many_pixels", "not_an_image", "truncated", "sha256_mismatch"),
    *("robots_disallowed", "robots_unreachable", "host_busy"),
)
"""Why a URL gives no picture, beside `http_404` and the like."""


class FetchError(OSError):
    """A request that gave no picture.  `reason` is a stable word; the message is for people."""

    def __init__(self, reason: str, message: str, *, later: bool = False) -> None:
        message = message[:MAX_MESSAGE_CHARACTERS]  # servers have their say in it, and it is kept for every URL
        super().__init__(f"[{reason}] {message}")
        self.reason, self.message = reason, message
        self.later = later
        """Passing, but not so soon that another attempt is worth it now."""

    @property
    def passing(self) -> bool:
        """Whether another attempt, now or in a later round, may succeed."""
        return self.reason in _PASSING or self.reason.startswith("http_5")


_PASSING = {
    *("timeout", "connection", "dns", "truncated", "host_busy", "robots_unreachable"),
    *("http_408", "http_425", "http_429"),
}


class Origin(NamedTuple):
    """What robots.txt and a connection belong to."""

    scheme: str
    host: str
    """As it goes to the resolver: ASCII, lower case, no brackets, no trailing dot."""
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """As the Host header says it: the usual port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}


def url_problem(url: str) -> str | None:
    """What is wrong with the form of a URL, or None when it can be tried."""
    if len(url) > MAX_URL_CHARACTERS:
        return f"is longer than {MAX_URL_CHARACTERS:,} characters"
    if re.search(r"[\x00-\x20\x7f\\]", url):
        return "has spaces, control characters or backslashes"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"is malformed: {error}"
    if parts.scheme not in _PORTS:
        return f"has scheme {parts.scheme or '(none)'!r}; only http and https are fetched"
    if not host:
        return "has no host"
    if "@" in parts.netloc:
        return "carries a user name"
    if port == 0:
        return "has port 0"
    try:
        ascii_host(host)
    except ValueError:
        return "has a host that is no valid name"
    return None


def ascii_host(host: str) -> str:
    """The name or address as it goes to the resolver; raises ValueError when there is none."""
    if ":" in host:
        if (address := ipaddress.IPv6Address(host)).scope_id:
            raise ValueError(f"{host} names an interface of this machine")
        return str(address)
    name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    if len(name) > MAX_HOST_CHARACTERS or not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
        raise ValueError(f"{host} is no name of a host")
    return name


def origin_of(url: str) -> Origin:
    """Raises FetchError (`bad_url`) for a URL that cannot be tried."""
    if problem := url_problem(url):
        raise FetchError("bad_url", f"{url[:200]!r} {problem}")
    parts = urlsplit(url)
    return Origin(parts.scheme, ascii_host(parts.hostname or ""), parts.port or _PORTS[parts.scheme])


def request_target(url: str) -> str:
    """Path and query of a URL as they go into the request line: ASCII, no spaces."""
    parts = urlsplit(url)
    query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?[]')}" if parts.query else ""
    return quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + query


def redirected(url: str, location: str) -> str:
    """Where a redirect leads.  http.client reads headers as Latin-1; what was sent is mostly UTF-8, and may hold spaces."""
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location.strip().replace(" ", "%20"))
    except ValueError as error:
        raise FetchError("bad_url", f"{url} redirects to {location[:200]!r}: {error}") from error
