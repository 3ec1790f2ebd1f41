"""Everything that `urlopen` may not do, tried through `urlopen`."""

import io
import socket
import struct
import threading
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from data_prep.fetch.opener import HardenedOpener, installed
from data_prep.fetch.policy import FetchError, FetchPolicy
from tests.unit.data_helpers import body, picture, redirect, status, web_server, write_certificate

PICTURE = picture()


def reason_for(url: str, policy: FetchPolicy, *, retries: int = 0) -> str:
    opener = HardenedOpener(policy, retries=retries)
    with installed(opener), pytest.raises(FetchError) as caught:
        urllib.request.urlopen(url, timeout=5)
    assert opener.records[-1].reason == caught.value.reason
    return caught.value.reason


def test_a_picture_is_fetched_and_logged() -> None:
    with web_server({"/a.webp": body(PICTURE)}) as web, installed(HardenedOpener(web.allowed(user_agent="me@x"))) as opener:
        with urllib.request.urlopen(f"{web.url}/a.webp?x=ä#part", timeout=5) as response:
            assert (response.read(), response.headers["Content-Type"]) == (PICTURE, "image/webp")
        assert web.agents == {"me@x"}
        (record,) = opener.records
        assert (record.http_status, record.content_type, record.reason, record.attempts) == (200, "image/webp", None, 1)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "data:image/png;base64,AA", "gopher://x/"])
def test_other_schemes_are_refused(url: str) -> None:
    assert reason_for(url, FetchPolicy(allowed_private_hosts=("127.0.0.1",))) == "bad_url"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]"]
)
def test_loopback_is_refused_in_every_notation_before_a_connection(host: str) -> None:
    with web_server({"/": body(PICTURE)}) as web:
        url = f"http://{host}:{web.host.rpartition(':')[2]}/"
        assert reason_for(url, FetchPolicy()) == "forbidden_address"
        assert web.connections == 0


def test_a_redirect_is_followed_and_its_end_is_logged() -> None:
    with web_server({"/a": redirect("/b"), "/b": body(PICTURE)}) as web, installed(HardenedOpener(web.allowed())) as opener:
        assert urllib.request.urlopen(f"{web.url}/a").read() == PICTURE
        assert opener.records[0].final_url == f"{web.url}/b"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/", "forbidden_address"),
        ("http://10.0.0.1/a.webp", "forbidden_address"),
        ("http://[::1]/a.webp", "forbidden_address"),
        ("file:///etc/passwd", "bad_url"),
        ("http://[broken", "bad_url"),
        ("http://host\xe9.\xff\xfe/", "dns"),
        ("/a", "too_many_redirects"),
    ],
)
def test_a_redirect_is_judged_like_the_first_address(location: str, reason: str) -> None:
    with web_server({"/a": redirect(location)}) as web:
        assert reason_for(f"{web.url}/a", web.allowed()) == reason


def test_a_redirect_to_another_port_of_an_allowed_host_is_refused() -> None:
    with web_server({"/": body(PICTURE)}) as canary, web_server({"/a": redirect(canary.url)}) as web:
        assert reason_for(f"{web.url}/a", web.allowed()) == "forbidden_address"
        assert canary.connections == 0


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["fe80::1%eth0"]])
def test_a_name_with_one_private_address_is_refused(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(0, 0, 0, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert reason_for("http://rebinding.example/a.webp", FetchPolicy()) == "forbidden_address"


def test_a_name_is_resolved_once_so_it_cannot_change_its_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["127.0.0.1"], ["10.9.9.9"]])
    monkeypatch.setattr("data_prep.fetch.addresses._look_up", lambda *_: next(answers))
    with web_server({"/": body(PICTURE)}) as web:
        port = web.host.rpartition(":")[2]
        with installed(HardenedOpener(FetchPolicy(allowed_private_hosts=("pictures.example",)))):
            for _ in range(2):
                assert urllib.request.urlopen(f"http://pictures.example:{port}/").read() == PICTURE
    assert next(answers) == ["10.9.9.9"]


def test_an_unknown_name_and_a_closed_port_have_their_own_words() -> None:
    assert reason_for("http://name.invalid/a.webp", FetchPolicy()) == "dns"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        policy = FetchPolicy(allowed_private_hosts=("127.0.0.1",))
        assert reason_for(f"http://127.0.0.1:{unused.getsockname()[1]}/", policy) == "connection"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server({"/": body(PICTURE)}) as proxy, web_server({"/": body(PICTURE)}) as web:
        monkeypatch.setenv("http_proxy", proxy.url)
        with installed(HardenedOpener(web.allowed())):
            urllib.request.urlopen(f"{web.url}/")
        assert proxy.connections == 0


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(PICTURE)
    while True:  # until the client hangs up
        request.wfile.write(b"\0" * 65536)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(404), "http_404"),
        (status(503), "http_503"),
        (body(b"<!doctype html>"), "not_an_image"),
        (body(b""), "not_an_image"),
        (body(b"GIF89a" + b"\0" * 50), "not_an_image"),
        (body(PICTURE, announced=10**12), "too_large"),
        (endless, "too_large"),
        (body(PICTURE[:-10], announced=len(PICTURE)), "truncated"),
        (body(zlib.compress(PICTURE), Content_Encoding="deflate"), "not_an_image"),
        (body(picture(width=2000, height=600)), "too_many_pixels"),
    ],
)
def test_what_is_no_acceptable_picture_has_a_stable_word(answer: Any, reason: str) -> None:
    with web_server({"/a": answer}) as web:
        assert reason_for(f"{web.url}/a", web.allowed(max_bytes=1_000_000, max_pixels=1_000_000)) == reason


def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding() -> None:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    png = io.BytesIO()
    png.write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    png.write(struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with web_server({"/a": body(png.getvalue())}) as web:
        assert reason_for(f"{web.url}/a", web.allowed()) == "too_many_pixels"


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_slow_drip_ends_at_the_deadline(part: str) -> None:
    with web_server({}) as web:

        def drip(request: BaseHTTPRequestHandler) -> None:
            request.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"X-Slow: " if part == "headers" else b"\r\n\xff\xd8\xff"))
            while not web.stopping.wait(0.02):  # each byte well within any timeout for a single read
                request.wfile.write(b"a")

        web.answers["/a"] = drip
        assert reason_for(f"{web.url}/a", web.allowed(timeout_s=0.3)) == "timeout"


def test_only_passing_failures_are_tried_again() -> None:
    answers = {"/gone": status(404), "/busy": status(503)}
    with web_server(answers) as web:
        assert reason_for(f"{web.url}/gone", web.allowed(), retries=2) == "http_404"
        assert reason_for(f"{web.url}/busy", web.allowed(), retries=2) == "http_503"
        assert web.requests == {"/gone": 1, "/busy": 3}


def test_a_site_sees_a_bounded_number_of_requests_at_once() -> None:
    with web_server({}) as web:
        lock, everyone = threading.Lock(), threading.Barrier(2)
        under_way, most = 0, 0

        def answer(request: BaseHTTPRequestHandler) -> None:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            everyone.wait(timeout=10)  # two must meet, or this breaks
            with lock:
                under_way -= 1
            body(PICTURE)(request)

        web.answers["/a"] = answer
        opener = HardenedOpener(web.allowed(max_requests_per_host=2))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: opener.open(f"{web.url}/a").read(), range(8)))
        assert found == [PICTURE] * 8
        assert most == 2


def test_https_is_spoken_and_an_unknown_certificate_refused(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    with web_server({"/a": body(PICTURE)}, tls=certificate) as web:
        assert reason_for(f"{web.url}/a", web.allowed()) == "tls"
        opener = HardenedOpener(web.allowed())
        opener.sites.web.tls.load_verify_locations(certificate)
        assert opener.open(f"{web.url}/a").read() == PICTURE
    with web_server({}) as plain:
        assert reason_for(plain.url.replace("http:", "https:"), plain.allowed()) == "tls"


def test_what_was_installed_before_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with installed(HardenedOpener(FetchPolicy())), pytest.raises(FetchError):
        urllib.request.urlopen((tmp_path / "a").as_uri())
    with urllib.request.urlopen((tmp_path / "a").as_uri()) as file:
        assert file.read() == b"x"
