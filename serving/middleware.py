"""What holds for every request: who calls, safe headers, a bounded body, a bounded number at once, a log line, and no bare 500.

Plain ASGI: a body is counted while it arrives, so one that is too long or too slow is refused before it has been gathered.
From outside in: `RequestContext`, `Authentication`, `Admission`.  They leave in `scope["state"]` the `request_id`, the
`metrics`, the `tenant` and its `account`.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.classify_stream import wants_lines
from serving.limits import ServingLimits
from serving.logs import current_request_id, log_request
from serving.metrics import IngressMetrics
from serving.problems import ProblemError, problem_response
from serving.rate import TenantAccount
from serving.tracing import request_span

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
"""Serve's proxy takes it from the client or makes one, hands it on, and sets it on the answer."""
_REQUEST_ID_FORM = re.compile(r"[\x21-\x7e]{1,128}")
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
_RAW_SECURITY_HEADERS = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
# cheap, and needed most when the service is overloaded
UNBOUNDED_PATHS = ("/healthz", "/metrics")


class RequestContext:
    """Outermost: request id, security headers, span, metrics, log line, and a problem document for what nobody caught."""

    def __init__(self, app: ASGIApp, *, metrics: IngressMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID)
        request_id = given if given and _REQUEST_ID_FORM.fullmatch(given) else secrets.token_hex(16)
        # of this request alone: Serve may hand the same mapping to all
        state = scope["state"] = {
            **scope.get("state", {}),
            "request_id": request_id,
            "started": started,
            "metrics": self._metrics,
        }
        status: int | None = None
        sent = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer.setdefault("cache-control", "no-store")
                answer.raw.extend(_RAW_SECURITY_HEADERS)  # which nothing else here sets
                if given is None:
                    answer[REQUEST_ID] = request_id
            sent += len(message.get("body", b""))
            await send(message)

        token = current_request_id.set(request_id)
        try:
            with request_span(scope["method"], headers) as span:
                try:
                    await self._app(scope, receive, send_with_headers)
                except Exception:
                    logger.exception("request failed")
                    if status is None:
                        detail = f"the service failed to answer; its log has the reason under request {request_id}"
                        await problem_response(ProblemError(500, "internal", detail))(scope, receive, send_with_headers)
                route = getattr(scope.get("route"), "path", "other")  # not the path itself: its ids would be endless
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes(
                    {
                        "http.request.method": scope["method"],
                        "http.route": route,
                        "http.response.status_code": status or 499,
                        "hyperclip.tenant": state.get("tenant", ""),
                        "hyperclip.request_id": request_id,
                    }
                )
        finally:
            self._account(scope, state, status or 499, sent=sent)
            current_request_id.reset(token)

    def _account(self, scope: Scope, state: Mapping[str, object], status: int, *, sent: int) -> None:
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.perf_counter() - float(str(state["started"]))
        self._metrics.requests.labels(scope["method"], route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        problem = state.get("problem")
        if status == 429 or problem == "quota_exceeded":  # whoever refused it: this file, a quota, the encoder
            self._metrics.shed.labels(str(problem)).inc()
        tenant = state.get("tenant")
        if isinstance(tenant, str):
            outcome = "ok" if status < 400 else "shed" if status == 429 else "refused" if status < 500 else "failed"
            self._metrics.tenant_requests.labels(tenant, outcome).inc()
        fields = {
            "tenant": tenant,
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "bytes_in": state.get("bytes_in", 0),
            "bytes_out": sent,
        }
        if problem is not None:
            fields["problem"] = problem
        log_request(fields)


class Admission:
    """Refuses before any work is done, and before a body is read: too many at once, of all or of one tenant, more than a tenant
    may ask for, a body that is too long or too slow, a page of another site."""

    def __init__(self, app: ASGIApp, *, limits: ServingLimits, metrics: IngressMetrics) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._in_flight = 0
        self._body_bytes = 0
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = scope["state"].get("account") if scope["type"] == "http" else None
        if account is None or scope["path"] in UNBOUNDED_PATHS:
            await self._app(scope, receive, send)
            return
        body = _Body.of(scope, self._limits)
        if refusal := self._refusal(scope, account, body):
            await problem_response(refusal, scope)(scope, receive, send)
            return
        self._metrics.stages.labels("admission").observe(time.perf_counter() - scope["state"]["started"])
        self._in_flight += 1
        self._streams += body.streamed
        account.in_flight += 1
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, self._bounded(receive, body), send)
        finally:
            self._in_flight -= 1
            self._streams -= body.streamed
            account.in_flight -= 1
            self._metrics.in_flight.dec()
            scope["state"]["bytes_in"] = body.received
            if body.received:
                self._body_bytes -= body.held
                self._metrics.body_bytes.dec(body.held)
                self._metrics.stages.labels("body").observe(body.seconds)

    def _refusal(self, scope: Scope, account: TenantAccount, body: "_Body") -> ProblemError | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        declared = int(length[:20]) if length.isdecimal() else 0
        if declared > body.max_bytes:
            return _too_long(body.max_bytes)
        # a browser says so when another site's page makes the call; loopback and private addresses are reachable to such pages
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return ProblemError(403, "cross_site", "calls from pages of other sites are refused")
        if self._in_flight >= self._limits.max_requests_in_flight:
            return self._shed("overloaded", "more requests than the service can take")
        if body.streamed and self._streams >= self._limits.max_streams:
            return self._shed("overloaded", "more streams than the service can take")
        if not body.streamed and self._body_bytes + declared > self._limits.max_body_bytes_in_flight:
            return self._shed("overloaded", "more bytes at once than the service can hold")
        if account.in_flight >= account.max_in_flight:
            detail = f"{account.in_flight} requests of this tenant are being worked on, as many as it may have at once"
            return self._shed("tenant_busy", detail)
        if wait := account.request_wait_s():
            rate = account.requests.rate if account.requests else 0
            return self._shed("rate_limited", f"more than the {rate:g} requests a second that this tenant may make", wait)
        return None

    def _shed(self, reason: str, detail: str, wait_s: int = 0) -> ProblemError:
        headers = {"retry-after": str(max(wait_s, self._limits.retry_after_s))}
        return ProblemError(429, reason, f"{detail}; wait and try again", headers=headers)

    def _bounded(self, receive: Receive, body: "_Body") -> Receive:
        async def bounded() -> Message:
            started = time.perf_counter()
            arrives = body.deadline is not None
            try:
                async with asyncio.timeout_at(body.deadline):
                    message = await receive()
            except TimeoutError as error:
                raise _too_slow(body.timeout_s) from error
            if arrives:
                body.seconds += time.perf_counter() - started
            if size := len(message.get("body", b"")):
                body.received += size
                if not body.streamed:  # of a stream, what has been looked at is gone
                    body.held += size
                    self._body_bytes += size
                    self._metrics.body_bytes.inc(size)
            if body.received > body.max_bytes:
                raise _too_long(body.max_bytes)
            if self._body_bytes > self._limits.max_body_bytes_in_flight:
                raise self._shed("overloaded", "more bytes at once than the service can hold")
            if not message.get("more_body", False):
                body.deadline = None
            return message

        return bounded


class _Body:
    """How far the body of one request is, and how long it may be."""

    def __init__(self, *, streamed: bool, max_bytes: int, timeout_s: float) -> None:
        self.streamed = streamed
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self.received = self.held = 0
        self.seconds = 0.0
        # None once all has arrived: the next message then says that the client has gone, whenever that is
        self.deadline: float | None = asyncio.get_running_loop().time() + timeout_s

    @classmethod
    def of(cls, scope: Scope, limits: ServingLimits) -> "_Body":
        if scope["path"].endswith("/classify") and wants_lines(Headers(scope=scope).get("accept", "")):
            return cls(streamed=True, max_bytes=limits.max_stream_bytes, timeout_s=limits.stream_timeout_s)
        return cls(streamed=False, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)


def _too_long(most: int) -> ProblemError:
    detail = f"the body is longer than the {most:,} bytes allowed"
    return ProblemError(413, "body_too_long", detail, headers={"connection": "close"})


def _too_slow(seconds: float) -> ProblemError:
    detail = f"the body did not arrive within the {seconds:g} s allowed"
    return ProblemError(408, "body_too_slow", detail, headers={"connection": "close"})


def overloaded(limits: ServingLimits) -> ProblemError:
    detail = "more requests than the service can take; wait and try again"
    return ProblemError(429, "overloaded", detail, headers={"retry-after": str(limits.retry_after_s)})
