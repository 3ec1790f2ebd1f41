"""What may be fetched: schemes, addresses, sizes and times, and the stable words for what went wrong.

Addresses are judged after name resolution and the connection goes to the address that was judged, so a name that changes its
mind in between (DNS rebinding) reaches nothing.
"""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from infra.config import StrictModel

MAX_URL_CHARACTERS = 4096

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA's special-purpose blocks, and Azure's platform address, which looks public.  `is_global` changed between Python releases.
_FORBIDDEN_IPV4 = [
    ipaddress.IPv4Network(block)
    for block in [
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
    ]
]
# Only global unicast is open, less the blocks that carry an IPv4 address inside (6to4, Teredo) or are for documentation.
# IPv4-mapped and NAT64 addresses lie outside 2000::/3 and fall with the rest.
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_FORBIDDEN_IPV6 = [ipaddress.IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]


class FetchPolicy(StrictModel):
    """Limits of every request the downloader makes."""

    max_bytes: PositiveInt = 20_000_000
    """Of one picture as received."""
    max_pixels: PositiveInt = 64_000_000
    """Read from the header, before anything is decoded."""
    timeout_s: PositiveFloat = 20.0
    """From first look-up to last byte, redirects included; one attempt."""
    connect_timeout_s: PositiveFloat = 5.0
    max_redirects: NonNegativeInt = 5
    max_requests_per_host: PositiveInt = 16
    """Under way at once from one task; further ones wait their turn, before their deadline starts."""
    retry_wait_s: float = Field(default=0.5, ge=0)
    """Before the first retry of a passing failure; doubles each time."""
    allowed_private_hosts: tuple[str, ...] = ()
    """Hosts (`host` or `host:port`, as written in the URL) that may lie in a private network; all others there are refused."""
    user_agent: str = Field(default="hyperclip/0.1 (image download; no contact configured)", pattern=r"^[\x20-\x7e]+$")
    """Say who fetches and how to reach you: site owners read it."""

    def allows_private(self, host: str, port: int) -> bool:
        allowed = {entry.lower() for entry in self.allowed_private_hosts}
        bracketed = f"[{host}]" if ":" in host else host
        return bool(allowed & {host.lower(), bracketed.lower(), f"{bracketed.lower()}:{port}"})


class FetchError(OSError):
    """A request that gave no picture.  `reason` is a stable word; the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"[{reason}] {message}")
        self.reason = reason

    @property
    def passing(self) -> bool:
        """Whether another attempt may succeed."""
        return self.reason in {"timeout", "connection", "dns", "truncated", "http_429"} or self.reason.startswith("http_5")


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
    if parts.scheme not in ("http", "https"):
        return f"has scheme {parts.scheme or '(none)'!r}; only http and https are fetched"
    if not host:
        return "has no host"
    if "@" in parts.netloc:
        return "carries a user name"
    if port == 0:
        return "has port 0"
    try:
        ascii_host(host)
    except UnicodeError:
        return "has a host that is no valid name"
    return None


def ascii_host(host: str) -> str:
    """The name as it goes to the resolver; raises UnicodeError when there is none."""
    return host if ":" in host else host.encode("idna").decode("ascii")


def port_of(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def is_odd_address(host: str) -> bool:
    """Whether a host is an IPv4 address in disguise: `2130706433`, `0x7f.1`, `0177.0.0.1`, `127.1`."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    if not re.fullmatch(r"\d+|0x[0-9a-f]*", last):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False


def is_public(address: IPAddress) -> bool:
    """Whether an address lies in the public internet, and nothing inside it points elsewhere."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in block for block in _FORBIDDEN_IPV4)
    return address in _GLOBAL_IPV6 and not any(address in block for block in _FORBIDDEN_IPV6)
