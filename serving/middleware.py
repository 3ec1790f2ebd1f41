"""What holds for every request: safe headers, a bounded body, a bounded number at once, and no bare 500.

Plain ASGI: a body is counted while it arrives, so one that is too long or too slow is refused before it has been gathered.
"""

import asyncio
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.classify_stream import wants_lines
from serving.limits import ServingLimits
from serving.metrics import IngressMetrics
from serving.problems import ProblemError, problem_response

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
"""Serve's proxy takes it from the client or makes one, hands it on, and sets it on the answer."""
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# cheap, and needed most when the service is overloaded
UNBOUNDED_PATHS = ("/healthz", "/metrics")


class RequestContext:
    """Outermost: security headers, metrics, and a problem document for what nobody caught."""

    def __init__(self, app: ASGIApp, *, metrics: IngressMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("cache-control", "no-store")
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            request_id = Headers(scope=scope).get(REQUEST_ID, "")[:64]
            logger.exception("request %r failed", request_id)
            if status is None:
                detail = f"the service failed to answer; its log has the reason under request {request_id}"
                await problem_response(ProblemError(500, "internal", detail))(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the path itself: its ids would be endless
            self._metrics.requests.labels(scope["method"], route, str(status or 499)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


class Admission:
    """Refuses before any work is done: too many at once, a body that is too long or too slow, a page of another site."""

    def __init__(self, app: ASGIApp, *, limits: ServingLimits, metrics: IngressMetrics) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._in_flight = 0
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNBOUNDED_PATHS:
            await self._app(scope, receive, send)
            return
        streamed = scope["path"].endswith("/classify") and wants_lines(Headers(scope=scope).get("accept", ""))
        if refusal := self._refusal(scope, streamed=streamed):
            await problem_response(refusal)(scope, receive, send)
            return
        self._in_flight += 1
        self._streams += streamed
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, self._bounded(receive, streamed=streamed), send)
        finally:
            self._in_flight -= 1
            self._streams -= streamed
            self._metrics.in_flight.dec()

    def _body_bounds(self, *, streamed: bool) -> tuple[int, float]:
        """Bytes, and seconds until they must have arrived."""
        limits = self._limits
        if streamed:
            return limits.max_stream_bytes, limits.stream_timeout_s
        return limits.max_body_bytes, limits.body_timeout_s

    def _refusal(self, scope: Scope, *, streamed: bool) -> ProblemError | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        most, _ = self._body_bounds(streamed=streamed)
        if length.isdecimal() and int(length[:20]) > most:
            return self._too_long(most)
        # a browser says so when another site's page makes the call; loopback and private addresses are reachable to such pages
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return ProblemError(403, "cross_site", "calls from pages of other sites are refused")
        if self._in_flight >= self._limits.max_requests_in_flight or (streamed and self._streams >= self._limits.max_streams):
            self._metrics.shed.inc()
            return overloaded(self._limits)
        return None

    def _bounded(self, receive: Receive, *, streamed: bool) -> Receive:
        received = 0
        most, seconds = self._body_bounds(streamed=streamed)
        # None once all has arrived: the next message then says that the client has gone, whenever that is
        deadline: float | None = asyncio.get_running_loop().time() + seconds

        async def bounded() -> Message:
            nonlocal received, deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise self._too_slow(seconds) from error
            received += len(message.get("body", b""))
            if received > most:
                raise self._too_long(most)
            if not message.get("more_body", False):
                deadline = None
            return message

        return bounded

    def _too_long(self, most: int) -> ProblemError:
        detail = f"the body is longer than the {most:,} bytes allowed"
        return ProblemError(413, "body_too_long", detail, headers={"connection": "close"})

    def _too_slow(self, seconds: float) -> ProblemError:
        detail = f"the body did not arrive within the {seconds:g} s allowed"
        return ProblemError(408, "body_too_slow", detail, headers={"connection": "close"})


def overloaded(limits: ServingLimits) -> ProblemError:
    detail = "more requests than the service can take; wait and try again"
    return ProblemError(429, "overloaded", detail, headers={"retry-after": str(limits.retry_after_s)})
