"""OpenTelemetry spans of a request, through the ingress and the deployments behind it.

Off unless the environment says where spans go, by OpenTelemetry's own variables: `OTEL_EXPORTER_OTLP_ENDPOINT` (or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`), with `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES` and the others as usual.  What is
off costs some microseconds a request.  Spans carry the same as the log line of a request, and no labels, pictures or keys.
"""

import functools
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import SpanKind

from serving.logs import current_request_id

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])

CALLER = "caller"
"""Keyword under which a call between deployments carries where it comes from: the request id and the trace context."""
SERVICE_NAME = "hyperclip"
_REQUEST_ID = "request-id"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_tracer = trace.get_tracer("hyperclip.serving")


def configure_tracing(component: str) -> None:
    """Send the spans of this process where the environment says; nothing when it says nothing.

    Args:
        component: the deployment, `service.component` of its spans.
    """
    environment = os.environ
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not any(environment.get(name) for name in _ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE_NAME}
    provider = TracerProvider(resource=Resource.create({**named, "service.component": component}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def request_span(method: str, headers: Mapping[str, str]) -> Iterator[trace.Span]:
    """The span of one HTTP request, below that of its caller if there is one."""
    if _off():
        yield trace.INVALID_SPAN
        return
    with _tracer.start_as_current_span(method, context=extract(headers), kind=SpanKind.SERVER) as span:
        yield span


def outgoing() -> dict[str, str]:
    """Where a call between deployments comes from, for the keyword `caller`."""
    carrier: MutableMapping[str, str] = {}
    if not _off():
        inject(carrier)
    if (request_id := current_request_id.get()) is not None:
        carrier[_REQUEST_ID] = request_id
    return dict(carrier)


def traced(name: str) -> Callable[[Method], Method]:
    """For a method of a deployment: takes the keyword `caller`, and runs with its request id inside a span below its own."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        async def call(self: Any, *args: Any, caller: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
            caller = caller or {}
            request_id = current_request_id.set(caller.get(_REQUEST_ID))
            try:
                if _off():
                    return await method(self, *args, **kwargs)
                context = attach(extract(caller))
                try:
                    with _tracer.start_as_current_span(name, kind=SpanKind.SERVER):
                        return await method(self, *args, **kwargs)
                finally:
                    detach(context)
            finally:
                current_request_id.reset(request_id)

        return call  # type: ignore[return-value]

    return decorate


def _off() -> bool:
    """Nobody takes spans, so none are made: even one that goes nowhere costs as much as a small part of a request."""
    return isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
