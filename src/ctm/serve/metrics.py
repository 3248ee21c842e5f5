"""What the service counts and times, for Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["STAGES", "Meters"]

STAGES = ("network", "filter", "signing", "database")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Meters:
    """The meters of one service, in a registry of its own. listener(stage, seconds), where it is set, is told of each stage.

    Where PROMETHEUS_MULTIPROC_DIR names a directory, the processes that write there are counted together (`shared`), without the
    gauge of the queue."""

    def __init__(self) -> None:
        self.listener: Callable[[str, float], object] | None = None
        self.shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("ctm_requests", "Requests answered", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "ctm_request_seconds",
            "Seconds from a request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "ctm_stage_seconds",
            "Seconds that a request waits for a stage: network, filter, signing, database",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.call_rows = Histogram(
            "ctm_call_rows", "Rows of a call of the network", ["model"], buckets=_ROWS, registry=registry
        )
        self.call_seconds = Counter("ctm_call_seconds", "Seconds inside the network", ["model"], registry=registry)
        self.queue = Gauge("ctm_queue_rows", "Images that are taken and not done", ["model"], registry=registry)
        self.pictures = Counter(
            "ctm_pictures", "Pictures that were screened, by decision", ["decision"], registry=registry
        )
        self.filter_calls = Counter(
            "ctm_filter_calls", "Calls of a filter, by outcome", ["filter", "outcome"], registry=registry
        )
        self.filter_seconds = Counter(
            "ctm_filter_seconds", "Seconds of calls of a filter", ["filter"], registry=registry
        )

    def filtered(self, name: str, outcome: str, seconds: float) -> None:
        """Told by `ctm.safety.Screen` of each call of a filter."""
        self.filter_calls.labels(name, outcome).inc()
        self.filter_seconds.labels(name).inc(seconds)

    def called(self, model: str, rows: int, seconds: float) -> None:
        """Told by the scheduler of each call of the network."""
        self.call_rows.labels(model).observe(rows)
        self.call_seconds.labels(model).inc(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage of one request."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.stages.labels(name).observe(seconds)
            if self.listener is not None:
                self.listener(name, seconds)

    def text(self) -> bytes:
        """All meters in Prometheus' text format, of all processes that count together."""
        if not self.shared:
            return generate_latest(self.registry)
        everything = CollectorRegistry()
        MultiProcessCollector(everything)
        return generate_latest(everything)
