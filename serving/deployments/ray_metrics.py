"""Our metrics as Ray's, which every node gives out for the replicas on it.

Telling Ray of one observation takes microseconds, and a request makes a dozen: counters are added up and gauges kept here, and
told once a second, which is more often than they are read.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.serve import metrics as serve_metrics

from serving.metrics import Metric, Publish

TELL_EVERY_S = 1.0


def ray_publisher(metric: Metric) -> Publish:
    """For use inside a replica: Ray adds the names of deployment and replica."""
    if metric.kind == "histogram":
        histogram = serve_metrics.Histogram(
            metric.name, metric.description, boundaries=list(metric.buckets), tag_keys=metric.labels
        )
        return lambda value, labels: histogram.observe(value, dict(labels))
    if metric.kind == "gauge":
        gauge = serve_metrics.Gauge(metric.name, metric.description, tag_keys=metric.labels)
        return _Kept(lambda value, labels: gauge.set(value, labels), add=False)
    counter = serve_metrics.Counter(metric.name, metric.description, tag_keys=metric.labels)
    return _Kept(lambda value, labels: counter.inc(value, labels), add=True)


class _Kept:
    """The amounts of a counter since Ray was told, or the last values of a gauge, by their labels."""

    def __init__(self, tell: Callable[[float, dict[str, str]], Any], *, add: bool) -> None:
        self._tell, self._add = tell, add
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        self._lock = threading.Lock()
        _teller.add(self)

    def __call__(self, value: float, labels: Mapping[str, str]) -> None:
        key = tuple(labels.items())
        with self._lock:
            self._values[key] = value + (self._values.get(key, 0.0) if self._add else 0.0)

    def flush(self) -> None:
        with self._lock:
            values, self._values = self._values, {}
        for key, value in values.items():
            if value or not self._add:
                self._tell(value, dict(key))


class _Teller:
    """One thread for all metrics of a process; it starts with the first."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []

    def add(self, kept: _Kept) -> None:
        self._kept.append(kept)
        if len(self._kept) == 1:
            threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(TELL_EVERY_S)
            for kept in list(self._kept):
                kept.flush()


_teller = _Teller()
