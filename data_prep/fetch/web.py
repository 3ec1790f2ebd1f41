"""One GET request at a time, hop by hop, under the fetch policy: form, address, turn, connection, headers.

It speaks HTTP on sockets it connected itself: no proxies, no other schemes, no hidden decompression.  Robots and redirects are
for its callers.
"""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator

from data_prep.fetch.addresses import AddressBook
from data_prep.fetch.connections import Answer, Connection, ConnectionPool
from data_prep.fetch.deadline import Deadline
from data_prep.fetch.host_turns import HostTurns, retry_after_s
from data_prep.fetch.policy import FetchError, FetchPolicy, Origin, origin_of, request_target

_BUSY = {429, 503}


class NotConnectedError(FetchError):
    """The origin was not reached: whatever is asked of it, this is the answer."""


class Web:
    """What one process knows of hosts and holds of connections.  Thread-safe."""

    def __init__(self, policy: FetchPolicy) -> None:
        self.policy = policy
        self.tls = ssl.create_default_context()
        self.turns = HostTurns(
            at_once=policy.max_requests_per_host, spacing_s=policy.host_spacing_s, max_wait_s=policy.max_wait_s
        )
        self.connections = ConnectionPool()
        self._book = AddressBook()

    @contextlib.contextmanager
    def get(
        self, url: str, deadline: Deadline, *, accept: str, max_body_bytes: int, spacing_s: float = 0.0
    ) -> Iterator[Answer]:
        """Ask for one URL; yields the answer with its body unread.  Redirects are not followed.

        Raises:
            FetchError: there is no answer, or reading it failed; NotConnectedError when the origin was not even reached.
        """
        origin = origin_of(url)
        request = self._request(origin, url, accept)
        addresses = self._addresses(origin, deadline)
        with contextlib.ExitStack() as stack:
            with deadline.stopped():
                stack.enter_context(self.turns.turn(origin.host, spacing_s=spacing_s, waited_s=deadline.stood_s))
            with named_errors(url):
                connection, response = self._ask(origin, addresses, request, deadline, max_body_bytes)
            try:
                self._note_pause(origin.host, response)
                with named_errors(url):
                    yield response
            finally:
                if connection.is_reusable_after(response, deadline):
                    self.connections.put(connection)
                else:
                    connection.close()

    def _request(self, origin: Origin, url: str, accept: str) -> bytes:
        lines = (
            f"GET {request_target(url)} HTTP/1.1",
            f"Host: {origin.authority}",
            f"User-Agent: {self.policy.user_agent}",
            f"Accept: {accept}",
            "Accept-Encoding: identity",
            "Connection: keep-alive",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")

    def _addresses(self, origin: Origin, deadline: Deadline) -> list[str]:
        find = self._book.addresses if self.policy.allows_private(origin.host, origin.port) else self._book.public_addresses
        try:
            return find(origin.host, deadline)
        except FetchError as error:
            raise NotConnectedError(error.reason, error.message) from error
        except TimeoutError as error:
            raise NotConnectedError("timeout", f"{origin}: {error}") from error

    def _ask(
        self, origin: Origin, addresses: list[str], request: bytes, deadline: Deadline, max_body_bytes: int
    ) -> tuple[Connection, Answer]:
        if kept := self.connections.take(origin):
            try:
                return kept, kept.ask(request, deadline, max_body_bytes=max_body_bytes)
            except (ConnectionError, ssl.SSLError):
                kept.close()
                if kept.answered:
                    raise
                # the server closed it while it was idle, which is its right: once more on a new one
            except BaseException:
                kept.close()
                raise
        fresh = self._connect(origin, addresses, deadline)
        try:
            return fresh, fresh.ask(request, deadline, max_body_bytes=max_body_bytes)
        except BaseException:
            fresh.close()
            raise

    def _connect(self, origin: Origin, addresses: list[str], deadline: Deadline) -> Connection:
        try:
            with named_errors(str(origin)):
                plain = self._connect_to_one(addresses, origin.port, deadline)
                if origin.scheme == "http":
                    return Connection(plain, origin)
                try:
                    plain.settimeout(deadline.remaining_s())
                    return Connection(self.tls.wrap_socket(plain, server_hostname=origin.host), origin)
                except BaseException:
                    plain.close()
                    raise
        except FetchError as error:
            raise NotConnectedError(error.reason, error.message) from error

    def _connect_to_one(self, addresses: list[str], port: int, deadline: Deadline) -> socket.socket:
        *others, last = addresses
        for address in others:
            with contextlib.suppress(OSError):  # a name with IPv6 and IPv4 is tried until one answers
                return self._connect_to(address, port, deadline)
        return self._connect_to(last, port, deadline)

    def _connect_to(self, address: str, port: int, deadline: Deadline) -> socket.socket:
        """Not `socket.create_connection`, which would ask the resolver about the address once more."""
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(min(self.policy.connect_timeout_s, deadline.remaining_s()))
            sock.connect((address, port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def _note_pause(self, host: str, response: Answer) -> None:
        """Leave the host alone when it asks for that."""
        if response.status not in _BUSY:
            self.turns.calm(host)
        elif (seconds := retry_after_s(response.headers.get("Retry-After"))) is not None:
            response.wants_long_pause = not self.turns.pause(host, seconds)


@contextlib.contextmanager
def named_errors(url: str) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP raise into a FetchError with a stable reason."""
    try:
        yield
    except FetchError:
        raise
    except TimeoutError as error:
        raise FetchError("timeout", f"{url} took too long: {error}") from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise FetchError("connection", f"{url}: {error}") from error
    except ssl.SSLError as error:
        raise FetchError("tls", f"{url}: {error}") from error
    except http.client.IncompleteRead as error:
        raise FetchError("truncated", f"{url} ended early: {error}") from error
    except OSError as error:  # RemoteDisconnected among them
        raise FetchError("connection", f"{url}: {type(error).__name__}: {error}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise FetchError("bad_answer", f"{url} does not speak HTTP: {type(error).__name__}: {error}") from error
