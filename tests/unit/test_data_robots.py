"""robots.txt and X-Robots-Tag, asked of a real server."""

import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from data_prep.fetch.opener import HardenedOpener, sites_of_process
from data_prep.fetch.policy import FetchError, FetchPolicy
from data_prep.fetch.robots import MAX_FILE_BYTES, MAX_RULES, Rules, refused_by_tag, rules_for
from tests.unit.data_helpers import Answer, body, picture, redirect, status, web_server

PICTURE = picture()
ROBOTS = "/robots.txt"


def text(lines: str) -> Answer:
    return body(lines.encode(), Content_Type="text/plain")


def reason_of(opener: HardenedOpener, url: str) -> str | None:
    try:
        assert opener.open(url).read() == PICTURE
    except FetchError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("User-agent: *\nDisallow: /private", "robots_disallowed"),
        ("User-agent: *\nDisallow: /private\nAllow: /private/a", None),
        ("User-agent: hyperclip\nDisallow: /\n\nUser-agent: *\nDisallow:", "robots_disallowed"),
        ("User-agent: hyperclip\nDisallow:\n\nUser-agent: *\nDisallow: /", None),
        ("User-agent: HyperClip/2\nUser-agent: other\nDisallow: /*.webp$", "robots_disallowed"),
        ("User-agent: hyper\nDisallow: /", None),
        ("\N{ZERO WIDTH NO-BREAK SPACE}User-agent: *\nDisallow: /", "robots_disallowed"),
        ("<!doctype html><p>All our pages are gone", None),
        ("", None),
    ],
)
def test_a_site_says_what_it_does_not_want_fetched(rules: str, reason: str | None) -> None:
    with web_server({"/private/a.webp": body(PICTURE), ROBOTS: text(rules)}) as web:
        opener = HardenedOpener(web.allowed())
        assert reason_of(opener, f"{web.url}/private/a.webp") == reason
        assert web.requests["/private/a.webp"] == (reason is None)
        assert [record.reason for record in opener.records] == [reason]  # the request for robots.txt is none of these


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(404), None),
        (status(403), None),
        (status(500), "robots_unreachable"),
        (status(429), "robots_unreachable"),
        (redirect("/elsewhere.txt"), "robots_disallowed"),
        (redirect(ROBOTS), None),  # in circles: as if there were none
        (redirect("http://10.0.0.1/robots.txt"), "robots_unreachable"),
        (redirect("file:///etc/passwd"), "robots_unreachable"),
        (body(b"User-agent: *\nDisallow: /", announced=1000), "robots_unreachable"),
    ],
)
def test_what_the_answer_for_robots_txt_means(answer: Answer, reason: str | None) -> None:
    answers = {"/a": body(PICTURE), ROBOTS: answer, "/elsewhere.txt": text("User-agent: *\nDisallow: /")}
    with web_server(answers) as web:
        assert reason_of(HardenedOpener(web.allowed()), f"{web.url}/a") == reason


def test_an_origin_is_asked_once_by_many_threads_and_partitions() -> None:
    with web_server({"/a": body(PICTURE), ROBOTS: text("User-agent: *\nDisallow: /b")}) as web:
        policy = web.allowed()
        for _ in range(2):
            opener = HardenedOpener(policy, sites=sites_of_process(policy))
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda name: reason_of(opener, f"{web.url}/{name}"), "abababab"))  # noqa: B023
            assert found == [None, "robots_disallowed"] * 4
        assert web.robots_requests == 1


def test_trouble_with_robots_txt_is_passing_and_not_asked_about_again_at_once() -> None:
    with web_server({"/a": body(PICTURE), ROBOTS: status(503)}) as web:
        opener = HardenedOpener(web.allowed(), retries=3)
        for _ in range(3):
            with pytest.raises(FetchError) as caught:
                opener.open(f"{web.url}/a")
            assert (caught.value.reason, caught.value.passing) == ("robots_unreachable", True)
        assert (web.robots_requests, web.requests["/a"]) == (2, 0)


def test_a_redirect_to_another_origin_asks_that_one_too() -> None:
    closed = text("User-agent: *\nDisallow: /")
    with web_server({"/b": body(PICTURE), ROBOTS: closed}) as other, web_server({"/a": redirect(f"{other.url}/b")}) as web:
        policy = FetchPolicy(allowed_private_hosts=(web.host, other.host))
        assert reason_of(HardenedOpener(policy), f"{web.url}/a") == "robots_disallowed"
        assert other.requests.total() == 0


def test_servers_of_ones_own_need_not_be_asked() -> None:
    with web_server({"/a": body(PICTURE), ROBOTS: text("User-agent: *\nDisallow: /")}) as web:
        assert reason_of(HardenedOpener(web.allowed(robots_txt=False)), f"{web.url}/a") is None
        assert web.robots_requests == 0


def test_no_more_is_read_than_a_crawler_must_read() -> None:
    lines = "User-agent: *\n" + "# nothing\n" * (MAX_FILE_BYTES // 10) + "Disallow: /\n"
    with web_server({"/a": body(PICTURE), ROBOTS: text(lines)}) as web:
        assert reason_of(HardenedOpener(web.allowed()), f"{web.url}/a") is None


def test_a_huge_chunk_behind_no_robots_txt_does_not_change_what_is_known() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(404)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"FFFFFFFFFFFFFFFFFF\r\n<html>")
        request.close_connection = True

    with web_server({"/a": body(PICTURE), ROBOTS: answer}, keep_alive=True) as web:
        opener = HardenedOpener(web.allowed())
        assert [reason_of(opener, f"{web.url}/a") for _ in range(2)] == [None, None]
        assert web.robots_requests == 1


def test_no_more_is_read_of_a_chunk_than_of_other_files() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        lines = b"User-agent: *\nDisallow: /b\n" + b"# nothing\n" * (MAX_FILE_BYTES // 5)
        request.wfile.write(b"FFFFFFFF\r\n" + lines)
        web.stopping.wait(30)  # the rest never comes

    with web_server({"/a": body(PICTURE), ROBOTS: answer}, keep_alive=True) as web:
        opener = HardenedOpener(web.allowed())
        assert [reason_of(opener, f"{web.url}/{name}") for name in "ab"] == [None, "robots_disallowed"]


def test_a_robots_txt_that_drips_ends_with_the_request() -> None:
    with web_server({"/a": body(PICTURE)}) as web:

        def drip(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.end_headers()
            while not web.stopping.wait(0.02):
                request.wfile.write(b"#")

        web.answers[ROBOTS] = drip
        assert reason_of(HardenedOpener(web.allowed(timeout_s=0.3)), f"{web.url}/a") == "robots_unreachable"


def test_a_crawl_delay_is_kept_between_requests() -> None:
    with web_server({"/a": body(PICTURE), ROBOTS: text("User-agent: *\nCrawl-delay: 0.2")}) as web:
        opener = HardenedOpener(web.allowed())
        started = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: reason_of(opener, f"{web.url}/a"), range(4))) == [None] * 4
        assert time.monotonic() - started >= 3 * 0.2


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("User-agent: us\nDisallow: /a\nUser-agent: *\nDisallow: /b", "Disallow: /a"),
        ("User-agent: x\nUser-agent: us\nDisallow: /a", "Disallow: /a"),
        ("User-agent: us\nDisallow: /a\nUser-agent: x\nDisallow: /b\nUser-agent: us\nAllow: /c", "Disallow: /a\nAllow: /c"),
        ("User-agent: us\n\nSitemap: /s\nUser-agent: x\nDisallow: /a # why", "Disallow: /a"),
        ("User-agent: us\nUser-agent: *", ""),
        ("Disallow: /", ""),
    ],
)
def test_the_rules_for_one_crawler(lines: str, kept: str) -> None:
    assert rules_for(lines, "us") == kept


def test_a_rule_of_many_wildcards_is_matched_without_backtracking() -> None:
    rules = Rules(f"Disallow: /{'*a' * 1000}*b")
    assert rules.allows(f"https://example.com/{'a' * 4000}")  # by backtracking this does not end
    assert not rules.allows(f"https://example.com/{'a' * 4000}b")


def test_many_crawlers_with_many_rules_cost_no_more_than_their_length() -> None:
    lines = "".join(f"User-agent: a{number}\n" for number in range(12_000)) + "User-agent: us\n" + "Disallow: /\n" * 12_000
    assert rules_for(lines, "us") == "Disallow: /"
    lines = "User-agent: us\n" + "".join(f"Disallow: /*{number}*a$\n" for number in range(2 * MAX_RULES))
    assert len(rules_for(lines, "us").splitlines()) == MAX_RULES


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        (["noai"], "noai"),
        (["NOINDEX, nofollow"], "noindex"),
        (["nofollow", "noai"], "noai"),
        (["hyperclip: noai"], "noai"),
        (["googlebot: noai"], None),
        (["googlebot: nofollow, noai"], None),
        (["googlebot: nofollow, hyperclip: noai"], "noai"),
        (["*: noai"], "noai"),
        (["unavailable_after: 25 Jun 2099 15:00:00 PST, noai"], "noai"),
        (["unavailable_after: Thu, 25 Jun 2099 15:00:00 PST, noai"], "noai"),
        (["none"], "none"),
        (["max-image-preview: none"], None),
        (["all", ""], None),
    ],
)
def test_the_x_robots_tag(values: list[str], refused: Any) -> None:
    assert refused_by_tag(values, token="hyperclip", directives=("noai", "noindex")) == refused


def test_a_tag_refuses_before_the_body_is_read() -> None:
    with web_server({}) as web:

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.send_header("X-Robots-Tag", "noai")
            request.end_headers()
            web.stopping.wait(30)  # no body ever comes

        web.answers["/a"] = answer
        assert reason_of(HardenedOpener(web.allowed(timeout_s=20)), f"{web.url}/a") == "robots_disallowed"
