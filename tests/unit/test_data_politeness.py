"""Turns at hosts: how many, how close together, and pauses that a host asks for."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from data_prep.fetch.host_turns import MAX_IDLE_HOSTS, MAX_PAUSES_IN_A_ROW, HostTurns, retry_after_s
from data_prep.fetch.opener import HardenedOpener
from data_prep.fetch.policy import FetchError, FetchPolicy
from tests.unit.data_helpers import Answer, body, picture, redirect, web_server

PICTURE = picture()


def busy(code: int, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other; the last one stays."""
    left = list(answers)

    def answer(request: BaseHTTPRequestHandler) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


def reason_of(opener: HardenedOpener, url: str) -> str | None:
    with pytest.raises(FetchError) as caught:
        opener.open(url)
    return caught.value.reason


def test_redirects_in_a_circle_between_hosts_with_one_turn_each_do_not_lock_up() -> None:
    with web_server({}) as one, web_server({}) as two:
        one_url, two_url = one.url, two.url.replace("127.0.0.1", "localhost")
        one.answers |= {"/a": redirect(f"{two_url}/b"), "/c": body(PICTURE)}
        two.answers |= {"/b": redirect(f"{one_url}/c"), "/a": redirect(f"{one_url}/b2")}
        one.answers["/b2"] = redirect(f"{two_url}/c2")
        two.answers["/c2"] = body(PICTURE)
        policy = FetchPolicy(allowed_private_hosts=("127.0.0.1", "localhost"), max_requests_per_host=1)
        opener = HardenedOpener(policy)
        with ThreadPoolExecutor(8) as pool:
            urls = [f"{one_url}/a", f"{two_url}/a"] * 8
            assert list(pool.map(lambda url: opener.open(url).read(), urls)) == [PICTURE] * 16


def test_the_host_a_redirect_leads_to_sees_a_bounded_number_too() -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def slow(request: BaseHTTPRequestHandler) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        body(PICTURE)(request)

    with web_server({"/b": slow}) as two, web_server({}) as one:
        one.answers["/a"] = redirect(f"{two.url.replace('127.0.0.1', 'localhost')}/b")
        policy = FetchPolicy(allowed_private_hosts=("127.0.0.1", "localhost"), max_requests_per_host=2)
        opener = HardenedOpener(policy)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: opener.open(f"{one.url}/a").read(), range(8))) == [PICTURE] * 8
    assert most <= 2


@pytest.mark.parametrize("code", [429, 503])
def test_a_host_that_asks_for_a_short_pause_gets_it(code: int) -> None:
    with web_server({"/a": in_turn(busy(code, Retry_After="1"), body(PICTURE))}) as web:
        opener = HardenedOpener(web.allowed(timeout_s=0.9), retries=1)  # the pause does not count
        started = time.monotonic()
        assert opener.open(f"{web.url}/a").read() == PICTURE
        assert time.monotonic() - started >= 1
        assert web.requests["/a"] == 2


def test_a_host_that_asks_for_a_long_pause_is_left_to_a_later_round() -> None:
    with web_server({"/a": busy(429, Retry_After=formatdate(time.time() + 600, usegmt=True)), "/b": body(PICTURE)}) as web:
        opener = HardenedOpener(web.allowed(max_wait_s=5), retries=3)
        assert reason_of(opener, f"{web.url}/a") == "http_429"
        assert reason_of(opener, f"{web.url}/b") == "host_busy"
        assert web.requests == {"/a": 1}
        assert [(record.http_status, record.attempts) for record in opener.records] == [(429, 1), (None, 1)]


def test_a_host_that_asks_for_pause_after_pause_is_left_alone() -> None:
    with web_server({"/a": busy(429, Retry_After="0")}) as web:
        opener = HardenedOpener(web.allowed(), retries=0)
        reasons = [reason_of(opener, f"{web.url}/a") for _ in range(MAX_PAUSES_IN_A_ROW + 2)]
        assert reasons == ["http_429"] * (MAX_PAUSES_IN_A_ROW + 1) + ["host_busy"]


def test_requests_to_a_host_begin_apart() -> None:
    turns = HostTurns(at_once=4, spacing_s=0.05, max_wait_s=10)

    def ask() -> None:
        with turns.turn("a"):
            pass

    started = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 5 * 0.05


def test_who_cannot_have_a_turn_in_time_learns_it_at_once() -> None:
    turns = HostTurns(at_once=4, spacing_s=20, max_wait_s=10)
    with turns.turn("a"):
        pass
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(FetchError, match=r"\[host_busy\]") as caught, turns.turn("a"):
            pass
        assert caught.value.passing
    assert time.monotonic() - started < 5
    with turns.turn("b"):  # another host is not concerned
        pass


def test_hosts_that_are_idle_are_forgotten() -> None:
    turns = HostTurns(at_once=1, spacing_s=0, max_wait_s=1)
    for number in range(MAX_IDLE_HOSTS + 100):
        with turns.turn(f"host-{number}"):
            pass
    assert len(turns._hosts) <= MAX_IDLE_HOSTS


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((None, None), ("", None), ("soon", None), ("-5", None), ("1.5", None), ("²", None)),
        *(("7", 7.0), (" 120 ", 120.0), ("9" * 4000, 999_999_999_999.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: Any) -> None:
    assert retry_after_s(value) == seconds
