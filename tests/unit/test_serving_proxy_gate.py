"""The door in Serve's proxy: who is refused, what is said, and when a place is free again."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import httpx
import pytest
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from starlette.types import Message, Receive, Scope, Send

from serving.config import ServingConfig
from serving.limits import ServingLimits
from serving.middleware import overloaded
from serving.proxy_gate import MAX_CALLS, MAX_PICTURE_CALLS_VARIABLE, ProxyGate, picture_calls
from serving.proxy_headers import CleanHeaders
from serving.switches import GATE
from tests.unit.serving_helpers import check_problem

PICTURE = "/v1/tasks/a/classify"
OTHER = "/v1/tasks"


class Held:
    """What is behind the door: answers when it is told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.num_inside = 0
        self.fails = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_inside += 1
        if scope["path"] not in ("/healthz", "/metrics", "/-/routes"):
            await self.release.wait()
        if self.fails:
            raise RuntimeError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        await send({"type": "http.response.body", "body": b"k"})


class Door:
    """A gate before a held application, and a client before the gate."""

    def __init__(self, *, max_picture_calls: int = 4, max_calls: int = 6) -> None:
        self.held, self.shed = Held(), 0
        self.gate = ProxyGate(self.held, max_picture_calls=max_picture_calls, max_calls=max_calls, shed=self._count)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.gate, raise_app_exceptions=False), base_url="http://service"
        )

    def _count(self) -> None:
        self.shed += 1

    async def enter(self, path: str = PICTURE, *, times: int = 1, **headers: str) -> list[asyncio.Task[httpx.Response]]:
        """Calls that get past the gate, and stay."""
        wanted = self.held.num_inside + times
        calls = [asyncio.create_task(self.ask(path, **headers)) for _ in range(times)]
        while self.held.num_inside < wanted:
            assert not any(call.done() for call in calls), "one was refused"
            await asyncio.sleep(0)
        return calls

    async def ask(self, path: str = PICTURE, **headers: str) -> httpx.Response:
        return await self.http.post(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def play(scenario: Callable[[Door], Awaitable[None]]) -> None:
    async def inside() -> None:
        await scenario(Door())

    asyncio.run(inside())


def test_what_is_too_much_is_refused_as_the_ingress_would_refuse_it() -> None:
    async def scenario(door: Door) -> None:
        calls = await door.enter(times=4)
        refused = await door.ask(x_request_id="mine")
        check_problem(refused, 429)
        said = overloaded(ServingLimits())
        assert refused.json() == said.problem.model_dump()
        assert refused.headers["retry-after"] == said.headers["retry-after"]
        assert refused.headers["x-request-id"] == "mine" and door.shed == 1
        door.held.release.set()
        assert [call.status_code for call in await asyncio.gather(*calls)] == [200] * 4
        assert (await door.ask()).status_code == 200

    play(scenario)


def test_it_is_seen_whether_a_full_service_is_alive() -> None:
    async def scenario(door: Door) -> None:
        await door.enter(OTHER, times=6)
        for path in ("/healthz", "/metrics", "/-/routes"):
            assert (await door.ask(path)).status_code == 200
        assert (await door.ask(OTHER)).status_code == 429

    play(scenario)


def test_calls_that_may_be_slow_do_not_take_the_places_of_pictures() -> None:
    async def scenario(door: Door) -> None:
        await door.enter(OTHER, times=1)
        await door.enter(accept="application/x-ndjson", times=1)
        await door.enter(times=4)
        assert (await door.ask()).status_code == 429

    play(scenario)


def test_a_caller_with_a_key_leaves_places_to_others() -> None:
    async def scenario(door: Door) -> None:
        await door.enter(authorization="Bearer a", times=2)
        assert (await door.ask(authorization="Bearer a")).status_code == 429
        await door.enter(x_api_key="b", times=1)
        assert (await door.ask(x_api_key="b")).status_code == 429
        await door.enter(authorization="Bearer c", times=1)

    play(scenario)


@pytest.mark.parametrize("end", ["answered", "failed", "cancelled"])
def test_a_place_is_free_again_however_a_call_ends(end: str) -> None:
    async def scenario(door: Door) -> None:
        calls = await door.enter(authorization="Bearer a", times=2)
        door.held.fails = end == "failed"
        if end == "cancelled":
            for call in calls:
                call.cancel()
        else:
            door.held.release.set()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (door.gate._calls, door.gate._picture_calls, dict(door.gate._of_caller)) == (0, 0, {})

    play(scenario)


def test_a_place_is_free_before_the_client_has_its_answer() -> None:
    """A client asks again at once, while the proxy has still to write its metrics."""

    async def inside() -> None:
        door = Door(max_picture_calls=1)
        door.held.release.set()
        places = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                places.append(door.gate._picture_calls)

        scope = {"type": "http", "path": PICTURE, "headers": []}
        await door.gate(scope, None, send)  # type: ignore[arg-type]
        assert places == [1, 0]

    asyncio.run(inside())


def test_serve_finds_it_and_the_proxy_gets_no_torch() -> None:
    found = validate_http_proxy_callback_return(call_function_from_import_path(*GATE.values()))
    assert [one.cls for one in found] == [CleanHeaders, ProxyGate]
    code = "import sys, serving.proxy_gate; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_call_waits_in_the_queue_of_serve() -> None:
    assert ServingConfig(bundle_uri="b", task_store_uri="t").ingress.max_ongoing_requests > MAX_CALLS


@pytest.mark.parametrize(("said", "meant"), [(None, 40), ("", 40), ("200", 200), ("many", 40), ("0", 40), ("-1", 40)])
def test_its_bound_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, said: str | None, meant: int) -> None:
    monkeypatch.delenv(MAX_PICTURE_CALLS_VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(MAX_PICTURE_CALLS_VARIABLE, said)
    assert picture_calls() == meant
