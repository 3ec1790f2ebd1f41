"""The first door, inside Serve's own proxy: what is too much is refused there, where that costs least.

A call costs the proxy, the ingress and the encoder some milliseconds of CPU each, and most of a refusal by the ingress is the
way to it and back.  So an ingress that refuses alone spends its time on that when it is offered several times what it can do,
and those it takes wait in queues before it that it does not see.  Serve's own bound (`max_queued_requests`) answers in plain
text, knows no callers, refuses `/healthz` with the rest, and asks a full replica for its length before it looks again.

Serve calls `middlewares` when the proxy starts: the environment variable `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, set by
`switches.py`.  Every proxy has this module's bounds for itself.  It imports no torch: a proxy has no use for that.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.proxy_headers import CleanHeaders

logger = logging.getLogger(__name__)

MAX_PICTURE_CALLS_VARIABLE = "HYPERCLIP_PROXY_MAX_PICTURE_CALLS"
MAX_PICTURE_CALLS = 40
"""A batch that runs, one that gathers (`max_batch_size` is 16), and some on their way: more would only wait longer."""
MAX_CALLS = 240
"""All calls, also slow ones.  Below the `max_ongoing_requests` of one ingress replica, so that none waits in Serve's queue."""
RETRY_AFTER_S = 1
SHED_METRIC = "hyperclip_proxy_requests_shed"
ALWAYS_ANSWERED = frozenset(("/healthz", "/metrics"))
SERVES_OWN = "/-/"
_PROBLEM = {
    "type": "urn:hyperclip:problem:overloaded",
    "title": "Too Many Requests",
    "status": 429,
    "detail": "more requests than the service can take; wait and try again",
}
_BODY = json.dumps(_PROBLEM, separators=(",", ":")).encode()
_HEADERS = [
    (b"content-type", b"application/problem+json"),
    (b"content-length", str(len(_BODY)).encode()),
    (b"retry-after", str(RETRY_AFTER_S).encode()),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]


class ProxyGate:
    """Bounds the calls that are under way.  Of those with pictures a caller with a key has as many as are still free at most:
    one that asks for all it can get has half, two a third each, and who has none yet nearly always finds a place.

    A stream of lines takes no place among the calls with pictures: it may last for minutes, and the ingress bounds streams.
    """

    def __init__(self, app: ASGIApp, *, max_picture_calls: int, max_calls: int, shed: Callable[[], None]) -> None:
        """Args: shed, told of each call that is refused."""
        self._app = app
        self._max_picture_calls = max_picture_calls
        self._max_calls = max_calls
        self._shed = shed
        self._calls = self._picture_calls = 0
        self._of_caller: Counter[bytes] = Counter()
        """Calls with pictures, by the key that came along, known or not."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED or scope["path"].startswith(SERVES_OWN):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        pictures = _has_pictures(scope, headers)
        caller = headers.get(b"authorization") or headers.get(b"x-api-key") or b""
        if self._is_full(caller, pictures=pictures):
            self._shed()
            await _refuse(headers.get(b"x-request-id"), send)
            return
        self._count(caller, 1, pictures=pictures)
        under_way = True

        async def send_and_leave(message: Message) -> None:
            nonlocal under_way
            if message["type"] == "http.response.body" and not message.get("more_body"):
                # before the client can ask again; what the proxy still does with the call afterwards takes its time
                self._count(caller, -1, pictures=pictures)
                under_way = False
            await send(message)

        try:
            await self._app(scope, receive, send_and_leave)
        finally:
            if under_way:
                self._count(caller, -1, pictures=pictures)

    def _count(self, caller: bytes, change: int, *, pictures: bool) -> None:
        self._calls += change
        if pictures:
            self._picture_calls += change
            self._of_caller[caller] += change
            if not self._of_caller[caller]:
                del self._of_caller[caller]

    def _is_full(self, caller: bytes, *, pictures: bool) -> bool:
        if self._calls >= self._max_calls:
            return True
        if not pictures:
            return False
        free = self._max_picture_calls - self._picture_calls
        return free <= (self._of_caller[caller] if caller else 0)


def _has_pictures(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    path: str = scope["path"]
    if path.endswith("/classify"):
        return b"application/x-ndjson" not in headers.get(b"accept", b"")
    return path == "/v1/embed/image"


async def _refuse(request_id: bytes | None, send: Send) -> None:
    """Without reading the body: the proxy's server drops what still arrives."""
    given = [(b"x-request-id", request_id)] if request_id and len(request_id) <= 128 else []
    await send({"type": "http.response.start", "status": 429, "headers": _HEADERS + given})
    await send({"type": "http.response.body", "body": _BODY})


def picture_calls() -> int:
    """The bound that the environment gives, else ours: a proxy that does not start because of it would help nobody."""
    said = os.environ.get(MAX_PICTURE_CALLS_VARIABLE, "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    if said:
        logger.error("%s=%s is no number above zero; it is %d", MAX_PICTURE_CALLS_VARIABLE, said, MAX_PICTURE_CALLS)
    return MAX_PICTURE_CALLS


def middlewares() -> list[Middleware]:
    """What Serve puts before its proxy."""
    from ray.util.metrics import Counter as RayCounter

    shed = RayCounter(SHED_METRIC, "Requests that the proxy refused because of load")
    gate = Middleware(ProxyGate, max_picture_calls=picture_calls(), max_calls=MAX_CALLS, shed=lambda: shed.inc())
    return [Middleware(CleanHeaders), gate]
