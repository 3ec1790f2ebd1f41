"""What is measured: one table of all metrics, and the figures of a replica.

The ingress keeps its figures twice: for its own `/metrics`, in Prometheus' text form, and in Ray's metrics, which every node
gives out for all replicas on it and where each name begins with `ray_`.  What concerns one call the other deployments tell in
their answers; what they keep in memory is in Ray's metrics only.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.messages import Classified, Refused

__all__ = ["CONTENT_TYPE_LATEST", "EncoderMetrics", "HypernetworkMetrics", "IngressMetrics", "Metric", "Publish", "Publisher"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STAGE_SECONDS = (0.0002, 0.0005, 0.001, 0.0025, *SECONDS)
STAGES = ("admission", "body", "decode", "queue", "forward", "specialize")
"""Of a request until the application has it, of its body; of a picture in the encoder, its scores included; of a new task."""


class Metric(NamedTuple):
    """One row of the table."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUESTS = Metric("hyperclip_requests", "counter", "Requests by route and status", ("method", "route", "status"))
REQUEST_SECONDS = Metric("hyperclip_request_seconds", "histogram", "Time to answer", ("route",), SECONDS)
STAGE = Metric("hyperclip_stage_seconds", "histogram", "Time of one stage", ("stage",), STAGE_SECONDS)
IN_FLIGHT = Metric("hyperclip_requests_in_flight", "gauge", "Requests being worked on")
BODY_BYTES = Metric("hyperclip_body_bytes_in_flight", "gauge", "Bytes of bodies held")
SHED = Metric("hyperclip_requests_shed", "counter", "Requests refused because of load, a rate or a quota", ("reason",))
STREAMS_IN_FLIGHT = Metric("hyperclip_streams_in_flight", "gauge", "Streamed answers being given")
STREAMS = Metric("hyperclip_streams", "counter", "Streamed answers by how they ended", ("outcome",))
TENANT_REQUESTS = Metric("hyperclip_tenant_requests", "counter", "Requests of a tenant by outcome", ("tenant", "outcome"))
TENANT_IMAGES = Metric("hyperclip_tenant_images", "counter", "Pictures of a tenant", ("tenant",))
TASKS = Metric("hyperclip_tasks", "counter", "Tasks asked for", ("cached",))
IMAGES = Metric("hyperclip_images", "counter", "Pictures by outcome", ("outcome",))
BATCH_SIZE = Metric(
    "hyperclip_image_batch_size", "histogram", "Pictures that shared a forward pass", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
MODEL_VERSIONS = Metric(
    "hyperclip_model_versions",
    "gauge",
    "1 for the state that a version is in, as this replica knows it",
    ("version", "state"),
)

TASKS_RESIDENT = Metric("hyperclip_tasks_resident", "gauge", "Specialized encoders that an encoder replica keeps ready")
RESIDENT_BYTES = Metric("hyperclip_resident_bytes", "gauge", "Bytes that these take")
EVICTIONS = Metric("hyperclip_evictions", "counter", "Specialized encoders dropped to make room")

LABELS = Metric("hyperclip_labels", "counter", "Labels of new tasks, by whether their features were remembered", ("cached",))
LABEL_BYTES = Metric("hyperclip_label_bytes", "gauge", "Bytes of the label features that a hypernetwork replica remembers")
TASKS_SWEPT = Metric("hyperclip_tasks_swept", "counter", "Tasks removed because nobody used them")

Publish = Callable[[float, Mapping[str, str]], None]
"""Takes one observation: an amount to add, a value to set, or a value to count; with the values of its labels."""
Publisher = Callable[[Metric], Publish]


def unpublished(_metric: Metric) -> Publish:
    """For a process without Ray."""
    return lambda _value, _labels: None


class _Child:
    """One metric with the values of its labels."""

    def __init__(self, inner: Counter | Gauge | Histogram, publish: Publish, labels: Mapping[str, str]) -> None:
        self._inner, self._publish, self._labels = inner, publish, labels
        self._level = 0.0

    def inc(self, amount: float = 1) -> None:
        self._inner.inc(amount)  # type: ignore[union-attr]
        self._level += amount
        self._publish(amount if isinstance(self._inner, Counter) else self._level, self._labels)

    def dec(self, amount: float = 1) -> None:
        self.inc(-amount)

    def observe(self, value: float) -> None:
        self._inner.observe(value)  # type: ignore[union-attr]
        self._publish(value, self._labels)


class _Series:
    """One metric of a registry; its children are made as they are asked for."""

    def __init__(self, metric: Metric, registry: CollectorRegistry, publish: Publish) -> None:
        self._metric, self._publish = metric, publish
        arguments = (metric.name, metric.description, metric.labels)
        if metric.kind == "histogram":
            self._inner: Counter | Gauge | Histogram = Histogram(*arguments, buckets=metric.buckets, registry=registry)
        else:
            self._inner = (Counter if metric.kind == "counter" else Gauge)(*arguments, registry=registry)
        self._children: dict[tuple[str, ...], _Child] = {}

    def labels(self, *values: str) -> _Child:
        if (child := self._children.get(values)) is None:
            inner = self._inner.labels(*values) if values else self._inner
            child = _Child(inner, self._publish, dict(zip(self._metric.labels, values, strict=True)))
            self._children[values] = child
        return child


class EncoderMetrics:
    """What an encoder replica keeps ready."""

    def __init__(self, publisher: Publisher = unpublished) -> None:
        self._tasks, self._bytes = publisher(TASKS_RESIDENT), publisher(RESIDENT_BYTES)
        self._evictions = publisher(EVICTIONS)

    def resident(self, num_tasks: int, *, num_bytes: int, num_evicted: int) -> None:
        """There are so many now; so many had to go for the last one."""
        self._tasks(num_tasks, {})
        self._bytes(num_bytes, {})
        self._evictions(num_evicted, {})


class HypernetworkMetrics:
    """What a hypernetwork replica remembers, and what it removes."""

    def __init__(self, publisher: Publisher = unpublished) -> None:
        self._labels, self._bytes, self._swept = publisher(LABELS), publisher(LABEL_BYTES), publisher(TASKS_SWEPT)

    def labels(self, *, num_cached: int, num_encoded: int) -> None:
        """The labels of a task were looked for."""
        self._labels(num_cached, {"cached": "true"})
        self._labels(num_encoded, {"cached": "false"})

    def remembered(self, num_bytes: int) -> None:
        """Label features take so much now."""
        self._bytes(num_bytes, {})

    def swept(self, num_tasks: int) -> None:
        self._swept(num_tasks, {})


class IngressMetrics:
    """A registry of its own, so that several can live in one process."""

    def __init__(self, publisher: Publisher = unpublished) -> None:
        self._registry = CollectorRegistry()

        def series(metric: Metric) -> _Series:
            return _Series(metric, self._registry, publisher(metric))

        self.requests = series(REQUESTS)
        self.seconds = series(REQUEST_SECONDS)
        self.stages = series(STAGE)
        self.in_flight = series(IN_FLIGHT).labels()
        self.body_bytes = series(BODY_BYTES).labels()
        self.shed = series(SHED)
        self.streams_in_flight = series(STREAMS_IN_FLIGHT).labels()
        self.streams = series(STREAMS)
        self.tenant_requests = series(TENANT_REQUESTS)
        self.tenant_images = series(TENANT_IMAGES)
        self.tasks = series(TASKS)
        self.images = series(IMAGES)
        self.batch_size = series(BATCH_SIZE).labels()
        self.model_versions = series(MODEL_VERSIONS)
        self._states: set[tuple[str, str]] = set()

    def task(self, *, specialize_ms: float | None) -> None:
        """A task was asked for; None when it was there already."""
        self.tasks.labels(str(specialize_ms is None).lower()).inc()
        if specialize_ms is not None:
            self.stages.labels("specialize").observe(specialize_ms / 1000)

    def pictures(self, results: Iterable[Classified | Refused]) -> None:
        """What became of the pictures of a call."""
        for result in results:
            if isinstance(result, Refused):
                self.images.labels(result.reason).inc()
                continue
            self.images.labels("classified").inc()
            self.batch_size.observe(result.batch_size)
            for stage, milliseconds in result.timings:
                if stage in STAGES:
                    self.stages.labels(stage).observe(milliseconds / 1000)

    def versions(self, states: Mapping[str, str]) -> None:
        """State by model version, all that there are."""
        now = set(states.items())
        for version, state in self._states - now:
            self.model_versions.labels(version, state).dec()
        for version, state in now - self._states:
            self.model_versions.labels(version, state).inc()
        self._states = now

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))
