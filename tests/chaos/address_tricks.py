"""Thousands of URLs, and redirects, that try to reach this machine or its network: none does.

Promise: nothing is connected to that is not in the public internet or named by the policy, and each trick is refused with a
word for it.  Canaries listen on loopback, IPv4 and IPv6; every connection that the process tries is counted as well, wherever
it leads.  Names are resolved at the edge: to loopback, to a public and a private address at once, or to another one each time.

python -m tests.chaos.address_tricks [--quick | --count N] [--seed S]
"""

import random
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

import pytest

from data_prep.fetch.opener import HardenedOpener, installed
from data_prep.fetch.policy import FetchError, FetchPolicy
from tests.chaos._address_tricks import MIXED, NAMES_OF_LOOPBACK, TRICKS, TURNING, location_of
from tests.result import chaos_arguments, chaos_result, environment, measure
from tests.unit.data_helpers import web_server

REASONS = {"bad_url", "forbidden_address", "dns"}
ORIGIN = "pictures.example"
"""The one host that is allowed; it redirects to tricks."""
PUBLIC = "93.184.215.14"
NOWHERE = "3ffe::1"
"""Public by its form, and assigned to nobody: what a turning name leads to at first."""
SHARE_OF_REDIRECTS, SHARE_OF_TURNING = 0.4, 0.005
NUM_PORTS = 3


class Canary:
    """Listens on one port of 127.0.0.1 and ::1."""

    def __init__(self, stack: ExitStack, port: int = 0) -> None:
        self.connections = self.bytes = 0
        first = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        self.port: int = first.getsockname()[1]
        second = stack.enter_context(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listener in (first, second):
            threading.Thread(target=self._listen, args=(listener,), daemon=True).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.settimeout(1)
                try:
                    self.bytes += len(connection.recv(65536))
                except OSError:
                    continue


class Found(NamedTuple):
    reasons: Counter[str]
    wrong: list[str]
    """`TRICK: what became of it`."""
    strayed: list[str]
    """Where connections were tried, other than to the origin."""
    connections: int
    num_bytes: int
    noticed: int
    """Connections that the canaries saw once they were allowed: the control."""


def strike(*, count: int, seed: int) -> Found:
    """Try `count` tricks, each kind alike, straight and through redirects."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        canaries = _canaries(stack)
        origin = stack.enter_context(web_server({}, keep_alive=True))
        origin_url = f"http://{ORIGIN}:{origin.host.rpartition(':')[2]}"
        real = socket.getaddrinfo
        patch.setattr(socket, "getaddrinfo", _resolver(real))
        tried = stack.enter_context(connections_tried(patch))
        policy = FetchPolicy(
            allowed_private_hosts=(origin_url.removeprefix("http://"),), connect_timeout_s=0.2, max_wait_s=0.1, retry_wait_s=0
        )
        opener = stack.enter_context(installed(HardenedOpener(policy)))
        reasons: Counter[str] = Counter()
        wrong: list[str] = []
        for number in range(count):
            port = rng.choice(canaries).port
            turning = rng.random() < SHARE_OF_TURNING
            trick = f"http://n{number}.{TURNING}:{port}/" if turning else TRICKS[number % len(TRICKS)](rng, port)
            url = trick
            if rng.random() < SHARE_OF_REDIRECTS and (location := location_of(trick, origin_url)):
                url = f"{origin_url}/{number}"
                origin.answers[f"/{number}"] = _redirecting(location)
            # a turning name is public when it is judged, and nobody is there: what matters is that nobody else is reached
            right = REASONS | ({"connection", "timeout"} if turning else set())
            reason = _reason_of(url)
            reasons[reason] += 1
            if reason not in right:
                wrong.append(f"{trick!r}: {reason}")
            origin.answers.pop(f"/{number}", None)
        assert len(opener.records) == count
        allowed = {("127.0.0.1", int(origin_url.rpartition(":")[2])), *((NOWHERE, canary.port) for canary in canaries)}
        strayed = sorted({f"{address}" for address in tried if address[:2] not in allowed})
        connections, num_bytes = sum(one.connections for one in canaries), sum(one.bytes for one in canaries)
        return Found(reasons, wrong, strayed, connections, num_bytes, _control(canaries[0]))


def _canaries(stack: ExitStack) -> list[Canary]:
    found = [Canary(stack) for _ in range(NUM_PORTS)]
    for usual in (80, 443):
        try:
            found.append(Canary(stack, usual))
        except OSError:  # not for everybody
            continue
    return found


def _reason_of(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return "fetched"
    except FetchError as error:
        return error.reason
    except Exception as error:  # the promise is a FetchError
        return repr(error)


def _control(canary: Canary) -> int:
    """The same opener, allowed to: the canary must notice, or its silence means nothing."""
    before = canary.connections
    hosts = (f"127.0.0.1:{canary.port}", f"[::1]:{canary.port}", f"localhost:{canary.port}")
    with installed(HardenedOpener(FetchPolicy(allowed_private_hosts=hosts, timeout_s=5, robots_txt=False))):
        for host in hosts:
            _reason_of(f"http://{host}/")
    ends = time.monotonic() + 5
    while canary.connections - before < len(hosts) and time.monotonic() < ends:
        time.sleep(0.01)
    return canary.connections - before


def _resolver(real: Any) -> Any:
    seen: Counter[str] = Counter()

    def resolve(host: str, port: Any, *_: Any, **__: Any) -> Sequence[Any]:
        name = host.lower().rstrip(".")
        if name == ORIGIN or name in NAMES_OF_LOOPBACK:
            return _addresses("127.0.0.1", "::1") if name != ORIGIN else _addresses("127.0.0.1")
        if name.endswith(MIXED):
            return _addresses(PUBLIC, "127.0.0.1")
        if name.endswith(TURNING):
            seen[name] += 1
            return _addresses(NOWHERE if seen[name] == 1 else "127.0.0.1")
        # what the system makes of odd numbers; it asks nobody for that
        return real(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    return resolve


def _addresses(*addresses: str) -> Sequence[Any]:
    return [(socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses]


def _redirecting(location: bytes) -> Any:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")

    return answer


@contextmanager
def connections_tried(patch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Addresses that sockets of this process are told to connect to."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, address: Any) -> None:
        tried.append(address)
        connect(self, address)

    patch.setattr(socket.socket, "connect", recorded)
    yield tried


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=10_000, quick_count=1_000)
    started = time.monotonic()
    found = strike(count=arguments.count, seed=arguments.seed)
    for problem in [*found.wrong[:50], *found.strayed[:50]]:
        print(f"PROBLEM {problem}", file=sys.stderr)
    return chaos_result(
        "address_tricks",
        injected=arguments.count,
        lost=0,
        failed=len(found.wrong) + len(found.strayed),
        measures={
            "kinds": measure(len(TRICKS) + 1),
            "refused": measure(arguments.count - len(found.wrong), goal=(">=", arguments.count)),
            "connections": measure(found.connections, goal=("<=", 0)),
            "bytes": measure(found.num_bytes, goal=("<=", 0)),
            "connections_tried_elsewhere": measure(len(found.strayed), goal=("<=", 0)),
            "connections_when_allowed": measure(found.noticed, goal=(">=", 3)),
            "rate": measure(arguments.count / (time.monotonic() - started), unit="URLs/s"),
        },
        reasons=found.reasons,
        seed=arguments.seed,
        **environment(),
    )


if __name__ == "__main__":
    sys.exit(main())
