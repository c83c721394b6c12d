"""What Prometheus collects at /metrics."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
ROUTES = "route", "method"


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("memtok_requests", "Requests", (*ROUTES, "status"), registry=registry)
        self.latency = Histogram(
            "memtok_request_seconds", "Seconds from the first byte of a request to its answer", ROUTES,
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_images = Histogram("memtok_batch_images", "Images in a batch", buckets=BATCHES, registry=registry)
        self.batch_seconds = Histogram(
            "memtok_batch_seconds", "Seconds that the model took for a batch", buckets=SECONDS, registry=registry
        )
        self.queue = Gauge("memtok_queue_images", "Images that wait for the model", registry=registry)
        self.tasks = Gauge("memtok_tasks", "Tasks that are served", registry=registry)
        self.task_images = Counter("memtok_task_images", "Images that a task answered", ("task",), registry=registry)

    def observe_batch(self, images: int, seconds: float) -> None:
        """Takes note of a batch."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def forget(self, task: str) -> None:
        """Drops the counter of a task that was removed."""
        with suppress(KeyError):  # a task that answered nothing has none
            self.task_images.remove(task)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
