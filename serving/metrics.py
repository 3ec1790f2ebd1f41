"""Counters of one ingress replica, in Prometheus' text form."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE_LATEST", "IngressMetrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class IngressMetrics:
    """A registry of its own, so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "hyperclip_requests", "Requests by route and status", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "hyperclip_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=self._registry
        )
        self.in_flight = Gauge("hyperclip_requests_in_flight", "Requests being worked on", registry=self._registry)
        self.shed = Counter("hyperclip_requests_shed", "Requests refused because of overload", registry=self._registry)
        self.tasks = Counter("hyperclip_tasks", "Tasks asked for", ["cached"], registry=self._registry)
        self.images = Counter("hyperclip_images", "Pictures by outcome", ["outcome"], registry=self._registry)
        self.batch_size = Histogram(
            "hyperclip_image_batch_size", "Pictures that shared a forward pass", buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))
