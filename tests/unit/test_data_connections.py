"""Kept connections: used again only where the last answer ended cleanly, and never at the cost of a request."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from data_prep.fetch.deadline import Deadline
from data_prep.fetch.opener import HardenedOpener
from data_prep.fetch.policy import FetchError, FetchPolicy
from tests.unit.data_helpers import body, picture, redirect, status, web_server, write_certificate

PICTURE = picture()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PICTURE)


def test_robots_txt_redirects_errors_and_pictures_go_over_one_connection() -> None:
    answers = {"/a": redirect("/b"), "/b": body(PICTURE), "/gone": status(404)}
    with web_server(answers, keep_alive=True) as web:
        opener = HardenedOpener(web.allowed())
        for _ in range(3):
            assert opener.open(f"{web.url}/a").read() == PICTURE
            with pytest.raises(FetchError, match="http_404"):
                opener.open(f"{web.url}/gone")
        assert web.connections == 1


def test_tls_connections_are_kept_too(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    with web_server({"/a": body(PICTURE)}, tls=certificate, keep_alive=True) as web:
        opener = HardenedOpener(web.allowed())
        opener.sites.web.tls.load_verify_locations(certificate)
        assert [opener.open(f"{web.url}/a").read() for _ in range(3)] == [PICTURE] * 3
        assert web.connections == 1


def test_a_body_left_unread_ends_its_connection() -> None:
    def page(request: BaseHTTPRequestHandler) -> None:
        body(b"<html>" * 100_000)(request)

    with web_server({"/page": page, "/a": body(PICTURE)}, keep_alive=True) as web:
        opener = HardenedOpener(web.allowed())
        with pytest.raises(FetchError, match="not_an_image"):
            opener.open(f"{web.url}/page")
        assert opener.open(f"{web.url}/a").read() == PICTURE
        assert web.connections == 2


@contextmanager
def raw_server(serve: Callable[[socket.socket, int], None]) -> Iterator[tuple[str, list[int]]]:
    """`serve(connection, number)` for every connection; yields its host and the numbers so far."""
    numbers: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                numbers.append(len(numbers))
                threading.Thread(target=_serve, args=(serve, connection, numbers[-1]), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", numbers
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _serve(serve: Callable[[socket.socket, int], None], connection: socket.socket, number: int) -> None:
    with connection:
        serve(connection, number)


def opener_for(host: str, *, retries: int = 0) -> HardenedOpener:
    return HardenedOpener(FetchPolicy(allowed_private_hosts=(host,), robots_txt=False, timeout_s=10), retries=retries)


def test_a_connection_the_server_has_closed_meanwhile_costs_no_attempt() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(HEAD + PICTURE)
        if number == 0:
            connection.recv(65536)  # the second request comes, and the server hangs up on it

    with raw_server(serve) as (host, numbers):
        opener = opener_for(host)
        assert [opener.open(f"http://{host}/a").read() for _ in range(2)] == [PICTURE] * 2
        assert [record.attempts for record in opener.records] == [1, 1]
        assert len(numbers) == 2


def test_what_comes_unasked_is_not_taken_for_the_next_answer() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        other = picture(9)
        unasked = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(other) + other
        connection.sendall(HEAD + PICTURE + (unasked if number == 0 else b""))
        connection.recv(65536)

    with raw_server(serve) as (host, numbers):
        opener = opener_for(host)
        assert [opener.open(f"http://{host}/a").read() for _ in range(2)] == [PICTURE] * 2
        assert len(numbers) == 2


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer_all(*answers: bytes) -> Callable[[socket.socket, int], None]:
    """A server that gives each connection these answers, one a request."""

    def serve(connection: socket.socket, _: int) -> None:
        for answer in answers:
            if connection.recv(65536):
                connection.sendall(answer)
        connection.recv(65536)

    return serve


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 Whatever"])
def test_what_comes_before_the_answer_is_passed_over(interim: bytes) -> None:
    pictures = [picture(seed) for seed in range(3)]
    hint = b"HTTP/1.1 %s\r\nLink: </style.css>; rel=preload\r\n\r\n" % interim
    answers = [2 * hint + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(each) + each for each in pictures]
    with raw_server(answer_all(*answers)) as (host, numbers):
        opener = opener_for(host)
        assert [opener.open(f"http://{host}/{number}").read() for number in range(3)] == pictures
        assert len(numbers) == 1


def test_a_switch_of_protocols_ends_its_connection() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n" if number == 0 else HEAD + PICTURE)
        connection.recv(65536)

    with raw_server(serve) as (host, numbers):
        opener = opener_for(host)
        with pytest.raises(FetchError, match="http_101"):
            opener.open(f"http://{host}/a")
        assert opener.open(f"http://{host}/b").read() == PICTURE
        assert len(numbers) == 2


@pytest.mark.parametrize("line", [b"zz", b"", b"0x"])
def test_a_malformed_chunk_ends_its_connection(line: bytes) -> None:
    broken = CHUNKED + chunk(PICTURE) + line + b"\r\n"
    other = picture(9)  # what the server would send next on the same connection
    next_answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(other) + other

    def serve(connection: socket.socket, number: int) -> None:
        answer_all(*([broken, next_answer] if number == 0 else [HEAD + PICTURE]))(connection, number)

    with raw_server(serve) as (host, numbers):
        opener = opener_for(host)
        with pytest.raises(FetchError) as caught:
            opener.open(f"http://{host}/a")
        assert caught.value.reason == "truncated"
        assert opener.open(f"http://{host}/b").read() == PICTURE
        assert len(numbers) == 2


# more than a C integer holds, more than there is memory for, and no number
@pytest.mark.parametrize("size", [b"FFFFFFFFFFFFFFFFFF", b"7FFFFFFFFFFFFFF", b"zz"])
def test_a_rest_nobody_needs_does_not_change_the_result(size: bytes) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        request = connection.recv(65536)
        rest = b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n<html>"
        if b"/moved" in request:
            connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /picture\r\n" + rest)
        elif b"/gone" in request:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\n" + rest)
        else:
            connection.sendall(HEAD + PICTURE)

    with raw_server(serve) as (host, numbers):
        opener = opener_for(host)
        assert opener.open(f"http://{host}/moved").read() == PICTURE
        with pytest.raises(FetchError) as caught:
            opener.open(f"http://{host}/gone")
        assert caught.value.reason == "http_404"
        assert len(numbers) == 3


def flood(start: bytes, block: bytes) -> Callable[[socket.socket, int], None]:
    def serve(connection: socket.socket, _: int) -> None:
        connection.recv(65536)
        try:
            connection.sendall(start)
            while True:
                connection.sendall(block)
        except OSError:
            pass  # the client has hung up, as it should

    return serve


@pytest.mark.parametrize(
    ("start", "block", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n", "bad_answer"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a" * 1000, "bad_answer"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "bad_answer"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n", "bad_answer"),
        (b"HTTP/1.1 200 ", b"o" * 1000, "bad_answer"),
        (b"", b"\0" * 1000, "bad_answer"),
        (CHUNKED + chunk(PICTURE), chunk(b"a", b";" + b"x" * 60_000), "too_large"),
        (CHUNKED + chunk(PICTURE) + b"0\r\n", b"X-Trailer: a\r\n", "too_large"),
        (CHUNKED + b"-1\r\n", PICTURE, "bad_answer"),  # http.client reads such a chunk to the end of the connection
        (CHUNKED + chunk(PICTURE), b"f" * 1000, "bad_answer"),
        (HEAD.replace(b"Content-Length: ", b"Content-Length: -") + PICTURE, b"\0" * 1000, "too_large"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + chunk(PICTURE), b"a", "not_an_image"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n" + PICTURE, b"a" * 1000, "not_an_image"),
    ],
)
def test_floods_end_early_and_in_bounded_memory(start: bytes, block: bytes, reason: str) -> None:
    with raw_server(flood(start, block)) as (host, _):
        opener = opener_for(host)
        opener.policy = opener.policy.rebuilt(max_bytes=1_000_000)
        with pytest.raises(FetchError) as caught:
            opener.open(f"http://{host}/a")
        assert caught.value.reason == reason


def test_a_deadline_stands_still_while_it_is_stopped() -> None:
    deadline = Deadline(0.05)
    with deadline.stopped():
        threading.Event().wait(0.2)
    assert deadline.remaining_s() > 0
    threading.Event().wait(0.06)
    with pytest.raises(TimeoutError):
        deadline.remaining_s()
