"""Names to addresses, and which addresses are in the public internet.

A name is looked up once and remembered for a while; what it led to is judged again before every connection, and the connection
goes to the address that was judged, so a name that changes its mind in between (DNS rebinding) reaches nothing.
"""

import ipaddress
import queue
import re
import socket
import threading
import time
from collections import OrderedDict

from data_prep.fetch.deadline import Deadline
from data_prep.fetch.policy import FetchError

MAX_NAMES = 10_000
REMEMBERED_S = 300.0

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
    return not address.scope_id and address in _GLOBAL_IPV6 and not any(address in block for block in _FORBIDDEN_IPV6)


class AddressBook:
    """Addresses of hosts, remembered for a while.  Thread-safe."""

    def __init__(self, *, max_names: int = MAX_NAMES, remembered_s: float = REMEMBERED_S) -> None:
        self._max_names, self._remembered_s = max_names, remembered_s
        self._known: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()
        self._lock = threading.Lock()

    def public_addresses(self, host: str, deadline: Deadline) -> list[str]:
        """Where to connect to: one address that is not in the public internet spoils the name.

        Raises:
            FetchError: `forbidden_address`, `dns`.
        """
        if is_odd_address(host):
            raise FetchError("forbidden_address", f"{host} is an address in an unusual notation")
        addresses = self.addresses(host, deadline)
        for address in addresses:
            try:
                public = is_public(ipaddress.ip_address(address))
            except ValueError:
                public = False
            if not public:
                raise FetchError("forbidden_address", f"{host} is at {address}, which is not in the public internet")
        return addresses

    def addresses(self, host: str, deadline: Deadline) -> list[str]:
        """All addresses of a host, wherever they lie; raises FetchError (`dns`) when there is none in time."""
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        now = time.monotonic()
        with self._lock:
            if (known := self._known.get(host)) and now < known[0]:
                return known[1]
        found = _look_up(host, deadline)
        with self._lock:
            self._known[host] = (now + self._remembered_s, found)
            self._known.move_to_end(host)
            if len(self._known) > self._max_names:
                self._known.popitem(last=False)
        return found


def _look_up(host: str, deadline: Deadline) -> list[str]:
    """In a thread of its own, because `getaddrinfo` knows no deadline."""
    answer: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
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
