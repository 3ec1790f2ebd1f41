"""A streamed answer, with a client and a service that are told what to do: every picture once, bounded while it runs,
over when the client goes."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from starlette.types import Message

from serving.classify_stream import PER_CALL, ClassifyStream
from serving.limits import ServingLimits
from serving.metrics import IngressMetrics
from serving.problems import ProblemError, make_problem
from serving.schemas import ClassifyAnswer, ImageResult, Prediction, StreamEnd, StreamLine, Timings
from tests.unit.serving_helpers import parsed_stream

FORM = "multipart/form-data; boundary=x"


def part(data: bytes, name: str = "images") -> bytes:
    head = f'--x\r\ncontent-disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
    return head.encode() + data + b"\r\n"


LAST = b"--x--\r\n"


def text(value: bytes, name: str) -> bytes:
    return f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


async def answered(images: Sequence[bytes]) -> ClassifyAnswer:
    """Each picture's label is its own bytes."""
    results = tuple(ImageResult(predictions=(Prediction(label=one.decode(), score=1.0, match=1.0),)) for one in images)
    return ClassifyAnswer(
        task_id="a" * 52, specialization_id="", model_version="1", parameters="specialized", results=results,
        timings_ms=Timings(total=0),
    )  # fmt: skip


class Client:
    """The far end of a connection."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self.gone = asyncio.Event()
        self.received = b""

    async def receive(self) -> Message:
        try:
            return {"type": "http.request", "body": await anext(self._body), "more_body": True}
        except StopAsyncIteration:
            self._body = _nothing_more(self.gone)
            return {"type": "http.request", "body": b"", "more_body": False}
        except ConnectionError:
            return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.received += message.get("body", b"")


async def _nothing_more(gone: asyncio.Event) -> AsyncIterator[bytes]:
    await gone.wait()
    raise ConnectionError
    yield b""


async def _parts(*data: bytes) -> AsyncIterator[bytes]:
    for one in data:
        yield one


def outcomes(metrics: IngressMetrics) -> tuple[dict[str, float], float]:
    """How streams have ended, and how many have not."""
    text = metrics.text().decode()
    ended = dict(re.findall(r'^hyperclip_streams_total\{outcome="(\w+)"\} (.+)$', text, re.MULTILINE))
    (running,) = re.findall(r"^hyperclip_streams_in_flight (.+)$", text, re.MULTILINE)
    return {outcome: float(number) for outcome, number in ended.items()}, float(running)


def run(
    body: AsyncIterator[bytes],
    *,
    ask: Callable[[Sequence[bytes]], Awaitable[ClassifyAnswer]] = answered,
    begin: Callable[[Mapping[str, list[str]]], Awaitable[None]] | None = None,
    texts: Sequence[str] = (),
    **limits: Any,
) -> tuple[dict[int, StreamLine], StreamEnd]:
    async def inside() -> str:
        client = Client(body)
        stream = ClassifyStream(
            ask, content_type=FORM, limits=ServingLimits(**limits), metrics=metrics, begin=begin, texts=texts
        )
        await stream({"type": "http"}, client.receive, client.send)
        return client.received.decode()

    metrics = IngressMetrics()
    lines, end = parsed_stream(asyncio.run(inside()))
    assert outcomes(metrics) == ({"complete" if end.problem is None else "cut_short": 1}, 0)
    return lines, end


def test_pictures_that_arrive_in_pieces_are_put_together() -> None:
    whole = part(b"one") + part(b"two") + LAST
    lines, end = run(_parts(*(whole[place : place + 1] for place in range(len(whole)))))
    assert [lines[index].predictions[0].label for index in (0, 1)] == ["one", "two"]  # type: ignore[index]
    assert end.problem is None


@pytest.mark.parametrize(
    ("body", "answers", "status", "says"),
    [
        ([part(b"one"), b"--x\r\nbroken"], 1, 400, "ends before its last boundary"),
        ([b"garbage", LAST], 0, 400, "cannot be read"),
        ([part(b"one"), part(b"two", name="labels"), LAST], 1, 422, "'labels'"),
        ([LAST], 0, 422, "no picture"),
        ([part(b"1"), part(b"2"), part(b"3"), LAST], 2, 422, "more than the 2 pictures"),
    ],
)
def test_a_body_that_goes_wrong_ends_with_the_reason(body: list[bytes], answers: int, status: int, says: str) -> None:
    lines, end = run(_parts(*body), max_stream_images=2)
    assert len(lines) == end.num_pictures == answers
    assert end.problem is not None and end.problem.status == status and says in end.problem.detail


@pytest.mark.parametrize(
    ("body", "answers", "status", "says"),
    [
        ([part(b"one"), text(b"cat", "labels"), LAST], 1, 422, "'labels' comes after a picture"),
        ([text(b"cat", "lables"), part(b"one"), LAST], 0, 422, "it may hold labels, images (files); did you mean labels?"),
        ([text(b"\xff", "labels"), part(b"one"), LAST], 0, 400, "is not UTF-8"),
        ([text(b"x" * 5000, "labels"), part(b"one"), LAST], 0, 422, "longer than 1,000 characters"),
        ([text(b"x", "labels") * 20_000, part(b"one"), LAST], 0, 422, "text fields"),
        ([text(b"cat", "labels"), part(b"one"), LAST], 0, 500, "failed before the first picture"),
    ],
)
def test_fields_come_before_the_pictures_or_the_stream_ends_with_the_reason(
    body: list[bytes], answers: int, status: int, says: str
) -> None:
    async def begin(fields: Mapping[str, list[str]]) -> None:
        if fields:
            raise RuntimeError("a bug")

    lines, end = run(_parts(*body), begin=begin, texts=("labels",))
    assert len(lines) == end.num_pictures == answers
    assert end.problem is not None and end.problem.status == status and says in end.problem.detail


def test_no_more_pictures_go_together_than_one_call_may_have() -> None:
    asked: list[int] = []

    async def ask(images: Sequence[bytes]) -> ClassifyAnswer:
        asked.append(len(images))
        return await answered(images)

    for most, expected in ((3, [3, 3, 3, 1]), (100, [8, 2])):
        asked.clear()
        run(_parts(part(b"p") * 10 + LAST), ask=ask, max_images=most)
        assert asked == expected


def test_reading_waits_for_the_work() -> None:
    held = asyncio.Event()
    sent = asked = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield part(b"p") * PER_CALL
        yield LAST

    async def ask(images: Sequence[bytes]) -> ClassifyAnswer:
        nonlocal asked
        asked += len(images)
        await held.wait()
        return await answered(images)

    async def inside() -> None:
        client = Client(body())
        stream = ClassifyStream(ask, content_type=FORM, limits=ServingLimits(max_stream_in_work=16), metrics=metrics)
        running = asyncio.create_task(stream({"type": "http"}, client.receive, client.send))
        for _ in range(200):
            await asyncio.sleep(0)
        assert (sent, asked) == (3, 15)  # a part ends where the next one begins; the third group is read, and waits
        assert outcomes(metrics) == ({}, 1)
        running.cancel()

    metrics = IngressMetrics()
    asyncio.run(inside())
    assert outcomes(metrics) == ({"gone": 1}, 0)


def test_the_work_stops_when_the_client_goes() -> None:
    stopped = 0

    async def inside() -> bytes:
        asked = asyncio.Semaphore(0)

        async def ask(images: Sequence[bytes]) -> ClassifyAnswer:
            nonlocal stopped
            asked.release()
            try:
                await asyncio.Event().wait()
            finally:
                stopped += 1
            raise AssertionError

        async def body() -> AsyncIterator[bytes]:
            yield part(b"one")
            yield part(b"two")
            yield part(b"three")  # not whole: the next boundary would end it
            for _ in range(2):
                await asked.acquire()
            raise ConnectionError

        client = Client(body())
        stream = ClassifyStream(ask, content_type=FORM, limits=ServingLimits(), metrics=metrics)
        await stream({"type": "http"}, client.receive, client.send)
        return client.received

    metrics = IngressMetrics()
    assert asyncio.run(inside()) == b""
    assert outcomes(metrics) == ({"gone": 1}, 0)
    assert stopped == 2


def test_the_work_stops_when_the_client_goes_after_the_body() -> None:
    async def inside() -> bytes:
        asked = asyncio.Event()

        async def ask(images: Sequence[bytes]) -> ClassifyAnswer:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        client = Client(_parts(part(b"one"), LAST))
        stream = ClassifyStream(ask, content_type=FORM, limits=ServingLimits(), metrics=metrics)
        running = asyncio.create_task(stream({"type": "http"}, client.receive, client.send))
        await asked.wait()
        client.gone.set()
        await running
        return client.received

    metrics = IngressMetrics()
    assert asyncio.run(inside()) == b""
    assert outcomes(metrics) == ({"gone": 1}, 0)


def test_a_busy_service_is_waited_for_and_a_broken_one_is_said() -> None:
    calls = 0

    async def ask(images: Sequence[bytes]) -> ClassifyAnswer:
        nonlocal calls
        calls += 1
        if images[0] == b"broken":
            raise RuntimeError("a bug")
        if calls < 3:
            raise ProblemError(429, "overloaded", "wait", headers={"retry-after": "0"})
        return await answered(images)

    lines, end = run(_parts(part(b"one"), LAST), ask=ask)
    assert lines[0].predictions and calls == 3
    lines, end = run(_parts(part(b"broken"), part(b"good"), LAST), ask=ask)
    assert lines[0].problem is not None and (lines[0].problem.status, lines[0].model_version) == (500, None)
    assert lines[1].predictions and end.num_failed == 1


def test_a_problem_is_passed_on_as_it_is() -> None:
    problem = make_problem(422, "truncated", "ends early")
    assert ProblemError.of_problem(problem).problem == problem
