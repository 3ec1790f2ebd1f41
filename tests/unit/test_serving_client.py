"""The client against a transport that says what it is told: keys, tries, streams in parts."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from serving import client as client_module
from serving.client import ServiceError, ServingClient
from serving.schemas import Prediction, StreamEnd, StreamLine

TASK = "a" * 52
HEALTHY = '{"status": "ok", "model_version": "1"}'
Handler = Callable[[httpx.Request], httpx.Response]


def connected(handler: Handler, *, api_key: str | None = None, retries: int = 0) -> ServingClient:
    return ServingClient("http://service", transport=httpx.MockTransport(handler), api_key=api_key, retries=retries)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What it waited instead of waiting."""
    waits: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", waits.append)
    return waits


def busy_first(times: int, *, status: int, headers: dict[str, str]) -> tuple[Handler, list[httpx.Request]]:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) <= times:
            problem = {"type": "urn:hyperclip:problem:x", "title": "x", "status": status, "detail": "wait"}
            return httpx.Response(status, json=problem, headers=headers)
        return httpx.Response(200, text=HEALTHY)

    return handler, asked


@pytest.mark.parametrize("status", [429, 503])
def test_it_waits_as_long_as_the_service_says_when_told_to(status: int, slept: list[float]) -> None:
    handler, asked = busy_first(2, status=status, headers={"retry-after": "7"})
    with connected(handler, retries=2) as client:
        assert client.health().status == "ok"
    assert (slept, len(asked)) == ([7.0, 7.0], 3)


@pytest.mark.parametrize(
    ("status", "headers", "retries"),
    [(429, {"retry-after": "1"}, 0), (429, {"retry-after": "1"}, 1), (503, {}, 5), (500, {"retry-after": "1"}, 5)],
)
def test_other_failures_are_raised_at_once(status: int, headers: dict[str, str], retries: int, slept: list[float]) -> None:
    handler, asked = busy_first(9, status=status, headers=headers)
    with connected(handler, retries=retries) as client, pytest.raises(ServiceError, match="wait") as failed:
        client.health()
    assert failed.value.status == status
    assert len(asked) == len(slept) + 1 == (2 if retries == 1 else 1)


def test_the_key_goes_with_every_call_and_into_no_message() -> None:
    keys: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers.get("authorization"))
        return httpx.Response(401, text="no")

    for key, sent in (("secret", "Bearer secret"), (None, None)):
        with connected(handler, api_key=key) as client, pytest.raises(ServiceError) as failed:
            client.models()
        assert keys.pop() == sent and "secret" not in str(failed.value)


# ---- many pictures -----------------------------------------------------------------------------------------------------


def lines_of(request: httpx.Request, *, end: str | None = None, first: str = "") -> httpx.Response:
    """The pictures of a call, answered the last one first."""
    assert request.headers["accept"] == "application/x-ndjson"
    number = request.read().count(b'name="images"')
    lines = [StreamLine(index=place, model_version="1").model_dump_json() for place in reversed(range(number))]
    last = StreamEnd(end=True, num_pictures=number, num_failed=0, problem=None, milliseconds=1.0).model_dump_json()
    text = "".join(f"{line}\n" for line in [first, *lines, last if end is None else end] if line)
    return httpx.Response(200, text=text)


def test_many_pictures_go_in_parts_that_are_read_when_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PICTURES_PER_CALL", 3)
    taken = 0

    def pictures() -> Iterator[bytes]:
        nonlocal taken
        for number in range(8):
            taken += 1
            yield bytes([number])

    with connected(lines_of) as client:
        answers = client.classify_many(TASK, pictures())
        assert next(answers).index == 2
        assert taken == 4  # one part, and the picture that did not fit into it
        assert [2, *(line.index for line in answers)] == [2, 1, 0, 5, 4, 3, 7, 6]
        assert list(client.classify_many(TASK, [])) == []


def test_a_label_may_hold_another_line_end_than_the_lines() -> None:
    found = Prediction(label="a\u2028b\u0085c", score=1.0, match=1.0)
    line = StreamLine(index=0, model_version="1", predictions=(found,)).model_dump_json()
    with connected(lambda request: lines_of(request, first=line)) as client:
        assert next(client.classify_many(TASK, [b"1"])).predictions == (found,)


def test_parts_are_bounded_by_their_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BYTES_PER_CALL", 10)
    sizes: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sizes.append(request.read().count(b'name="images"'))
        return lines_of(request)

    with connected(handler) as client:
        found = list(client.classify_many(TASK, [b"x" * 4, b"x" * 4, b"x" * 4, b"x" * 40, b"x"]))
    assert sizes == [2, 1, 1, 1]
    assert sorted(line.index for line in found) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("", "breaks off"),
        ("{broken", "does not understand"),
        (
            '{"end":true,"num_pictures":2,"num_failed":0,"problem":{"type":"t","title":"t","status":422,"detail":"too many"},'
            '"milliseconds":1.0}',
            "too many",
        ),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error_after_what_it_had(end: str, says: str) -> None:
    with connected(lambda request: lines_of(request, end=end)) as client:
        answers = client.classify_many(TASK, [b"1", b"2"])
        assert {next(answers).index, next(answers).index} == {0, 1}
        with pytest.raises(ServiceError, match=says):
            next(answers)


def test_a_service_that_cannot_be_reached_is_one_kind_of_error() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with connected(handler) as client:
        for call in (client.health, lambda: list(client.classify_many(TASK, [b"1"]))):
            with pytest.raises(ServiceError, match=r"no service answers at http://service"):
                call()
