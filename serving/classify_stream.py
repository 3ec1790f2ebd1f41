"""A large batch in one call: pictures in as a form, one JSON line a picture out, as they are ready.

What one stream holds is bounded, however long it is: so many pictures being worked on (reading stops meanwhile), and so many
bytes of lines that the client has not taken.  Answers and pictures go at the same time, and a client that sends everything
before it reads anything is served too, as long as its lines fit in there.  When the client goes, the work stops.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infra.errors import BadInputError
from serving.limits import ServingLimits
from serving.metrics import IngressMetrics
from serving.picture_parts import PictureParts
from serving.problems import ProblemError, make_problem
from serving.requests import CUT_OFF
from serving.schemas import ClassifyAnswer, ImageResult, Problem, StreamEnd, StreamLine

logger = logging.getLogger(__name__)

NDJSON = "application/x-ndjson"
PER_CALL = 8
"""Pictures that are asked for together, at most."""
PENDING_BYTES = 8 * 2**20
"""Of lines that the client has not taken; then no more pictures are read."""
Ask = Callable[[Sequence[bytes]], Awaitable[ClassifyAnswer]]
Begin = Callable[[Mapping[str, list[str]]], Awaitable[None]]


def wants_lines(accept: str) -> bool:
    """Whether an `Accept` header asks for a stream."""
    return any(part.partition(";")[0].strip().lower() == NDJSON for part in accept.split(","))


@dataclass
class _State:
    """Shared by who reads, who works and who writes; they are tasks of one event loop."""

    lines: list[bytes] = field(default_factory=list)
    pending_bytes: int = 0
    in_work: int = 0
    num_pictures: int = 0
    num_failed: int = 0
    all_read: bool = False
    gone: bool = False
    problem: Problem | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def ended(self) -> bool:
        return self.all_read and self.in_work == 0


class ClassifyStream(Response):
    """Reads the body itself, so it has to be the first to."""

    media_type = NDJSON

    def __init__(
        self,
        ask: Ask,
        *,
        content_type: str,
        limits: ServingLimits,
        metrics: IngressMetrics,
        begin: Begin | None = None,
        texts: Collection[str] = (),
    ) -> None:
        """Args:
            ask: classifies some pictures; each has its own result or problem.
            begin: called with the text fields before the first picture; what it raises ends the stream.
            texts: names of the text fields that may come before the pictures.

        Raises:
            ProblemError: the body is no form.
        """
        super().__init__()
        del self.headers["content-length"]
        self._ask = ask
        self._limits = limits
        self._metrics = metrics
        self._begin = begin
        max_texts = (
            limits.max_labels + limits.max_templates + 8
        )  # as in a form: the usual check says by how much it is too many
        self._parts = PictureParts(content_type, max_picture_bytes=limits.max_body_bytes, texts=texts, max_texts=max_texts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (of the protocol)
        outcome = "gone"  # also when the server cancels the call because of that
        self._metrics.streams_in_flight.inc()
        try:
            outcome = await self._answer(receive, send)
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._metrics.streams_in_flight.dec()
            self._metrics.streams.labels(outcome).inc()

    async def _answer(self, receive: Receive, send: Send) -> str:
        """How it ended: `complete`, `cut_short` by a problem that the last line says, or the client is `gone`."""
        state = _State()
        outcome = "gone"
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(receive, state, tasks))
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                while lines := await _take(state):
                    await send({"type": "http.response.body", "body": lines, "more_body": True})
                if not state.gone:
                    end = StreamEnd(
                        end=True,
                        num_pictures=state.num_pictures,
                        num_failed=state.num_failed,
                        problem=state.problem,
                        milliseconds=round((time.perf_counter() - started) * 1000, 3),
                    )
                    await send({"type": "http.response.body", "body": end.model_dump_json().encode() + b"\n"})
                    outcome = "complete" if state.problem is None else "cut_short"
            except OSError:  # the client has gone while we wrote
                state.gone = True
            finally:
                reading.cancel()
        return outcome

    async def _read(self, receive: Receive, state: _State, tasks: asyncio.TaskGroup) -> None:
        """Body to work; then wait for the client to go."""
        working: set[asyncio.Task[None]] = set()
        try:
            try:
                await self._read_form(receive, state, tasks, working)
            except ProblemError as error:  # in the middle of the answer: the last line says it
                state.problem = error.problem
            async with state.changed:
                state.all_read = True
                state.changed.notify_all()
            while (await receive())["type"] != "http.disconnect":
                pass
        except ClientDisconnect:
            pass
        finally:
            for task in working:
                task.cancel()
        async with state.changed:
            state.gone = True
            state.changed.notify_all()

    async def _read_form(
        self, receive: Receive, state: _State, tasks: asyncio.TaskGroup, working: set[asyncio.Task[None]]
    ) -> None:
        limits = self._limits
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            whole = self._parts.feed(message.get("body", b""))
            if whole and not state.num_pictures and self._begin is not None:
                await self._begun(self._begin)
            while whole:
                room = limits.max_stream_images - state.num_pictures
                if room <= 0:
                    raise ProblemError(
                        422, "too_many_images", f"more than the {limits.max_stream_images:,} pictures allowed in a stream"
                    )
                size = min(PER_CALL, limits.max_images, room)
                group, whole = whole[:size], whole[size:]
                await self._room(state, len(group))
                state.in_work += len(group)
                task = tasks.create_task(self._work(group, state, first=state.num_pictures))
                state.num_pictures += len(group)
                working.add(task)
                task.add_done_callback(working.discard)
            if self._parts.problem is not None:
                raise self._parts.problem
        if not self._parts.ended:
            raise ProblemError(400, "malformed_form", CUT_OFF)
        if not state.num_pictures:
            raise ProblemError(422, "no_image", "there is no picture in the request")

    async def _begun(self, begin: Begin) -> None:
        """Raises ProblemError: it cannot begin."""
        try:
            await begin(self._parts.fields)
        except ProblemError:
            raise
        except BadInputError as error:
            raise ProblemError(422, "invalid_request", str(error)) from error
        except Exception as error:
            logger.exception("a stream could not begin")
            raise ProblemError(
                500, "internal", "the service failed before the first picture; its log has the reason"
            ) from error

    async def _room(self, state: _State, number: int) -> None:
        """Wait until more pictures may be worked on."""
        most = self._limits.max_stream_in_work
        try:
            async with asyncio.timeout(self._limits.stream_timeout_s), state.changed:
                await state.changed.wait_for(
                    lambda: state.in_work + number <= max(most, number) and state.pending_bytes < PENDING_BYTES
                )
        except TimeoutError as error:
            detail = f"the answers were not taken within {self._limits.stream_timeout_s:g} s; read them while you send"
            raise ProblemError(408, "answers_not_taken", detail) from error

    async def _work(self, group: Sequence[bytes | None], state: _State, *, first: int) -> None:
        results = await self._results([image for image in group if image is not None])
        answered = iter(results)
        too_long = f"the picture is longer than the {self._limits.max_body_bytes:,} bytes allowed"
        lines = [
            next(answered) if image is not None else ("", ImageResult(problem=make_problem(413, "body_too_long", too_long)))
            for image in group
        ]
        written = [
            StreamLine(index=first + place, model_version=version or None, **dict(result)).model_dump_json().encode() + b"\n"
            for place, (version, result) in enumerate(lines)
        ]
        async with state.changed:
            state.in_work -= len(group)
            state.num_failed += sum(result.problem is not None for _, result in lines)
            state.lines += written
            state.pending_bytes += sum(map(len, written))
            state.changed.notify_all()

    async def _results(self, images: Sequence[bytes]) -> list[tuple[str, ImageResult]]:
        """With the model version of each.  Where the service is busy, a stream waits: its pictures are no hurry."""
        if not images:
            return []
        deadline = time.monotonic() + self._limits.request_timeout_s
        while True:
            try:
                answer = await self._ask(images)
                return [(answer.model_version, result) for result in answer.results]
            except ProblemError as error:
                wait = error.headers.get("retry-after")
                if wait is None or time.monotonic() + float(wait) > deadline:
                    return [("", ImageResult(problem=error.problem))] * len(images)
                await asyncio.sleep(float(wait))
            except Exception:
                logger.exception("pictures of a stream failed")
                failed = make_problem(500, "internal", "the service failed to answer for this picture; its log has the reason")
                return [("", ImageResult(problem=failed))] * len(images)


async def _take(state: _State) -> bytes:
    """All lines that are there; waits for one; nothing at the end, or when the client has gone."""
    async with state.changed:
        await state.changed.wait_for(lambda: state.lines or state.ended or state.gone)
        if state.gone:
            return b""
        lines, state.lines, state.pending_bytes = state.lines, [], 0
        state.changed.notify_all()
    return b"".join(lines)
