"""Our metrics as Ray's, which every node gives out for the replicas on it."""

from ray.serve import metrics as serve_metrics

from serving.metrics import Metric, Publish


def ray_publisher(metric: Metric) -> Publish:
    """For use inside a replica: Ray adds the names of deployment and replica."""
    if metric.kind == "histogram":
        histogram = serve_metrics.Histogram(
            metric.name, metric.description, boundaries=list(metric.buckets), tag_keys=metric.labels
        )
        return lambda value, labels: histogram.observe(value, dict(labels))
    if metric.kind == "gauge":
        gauge = serve_metrics.Gauge(metric.name, metric.description, tag_keys=metric.labels)
        return lambda value, labels: gauge.set(value, dict(labels))
    counter = serve_metrics.Counter(metric.name, metric.description, tag_keys=metric.labels)
    return lambda value, labels: counter.inc(value, dict(labels))
