"""What a process counts and measures, for Prometheus. No label comes from a client.

Metrics are per process: replicas are told apart by who scrapes them.
"""

from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Pool(Protocol):
    """Memory that is held and waited for, in bytes and transfers."""

    total: int
    in_use: int

    @property
    def waiting(self) -> int: ...


class Metrics:
    """All metrics, each by its name without `history_` and unit; times are seconds."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        self.requests = Histogram(
            "history_request_seconds",
            "Requests by method, route and status, and their seconds from head to end of answer.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.cut = Counter(
            "history_responses_cut_total",
            "Answers that were cut off after their status line, by route.",
            ["route"],
            registry=registry,
        )
        self.received = Counter(
            "history_received_bytes_total", "Bytes of requests' bodies.", registry=registry
        )
        self.sent = Counter(
            "history_sent_bytes_total", "Bytes of answers' bodies.", registry=registry
        )
        self.verifications = Counter(
            "history_verifications_total",
            "Proofs decided, by way (tag, receipt, memory, two_reads, one_read) and outcome.",
            ["way", "outcome"],
            registry=registry,
        )
        self.uploads_aborted = Counter(
            "history_uploads_aborted_total",
            "Uploads that left nothing behind, by the code of what ended them.",
            ["reason"],
            registry=registry,
        )
        self.s3 = Histogram(
            "history_s3_request_seconds",
            "Calls to S3 with their retries, by operation and outcome.",
            ["operation", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.s3_retries = Counter(
            "history_s3_retries_total",
            "Requests that were sent to S3 again, by operation.",
            ["operation"],
            registry=registry,
        )
        self.s3_resumed = Counter(
            "history_s3_downloads_resumed_total",
            "Downloads from S3 that broke off and were resumed.",
            registry=registry,
        )
        self._memory = {
            name: Gauge(f"history_memory_{name}", words, ["pool"], registry=registry)
            for name, words in {
                "budget_bytes": "Bytes of bundles that may be held at once, by pool.",
                "used_bytes": "Bytes of bundles that are held, by pool.",
                "waiters": "Transfers that wait for memory, by pool.",
            }.items()
        }

    def watch(self, name: str, pool: Pool) -> None:
        """Have what a pool of memory holds asked for at every scrape."""
        self._memory["budget_bytes"].labels(name).set(pool.total)
        self._memory["used_bytes"].labels(name).set_function(lambda: pool.in_use)
        self._memory["waiters"].labels(name).set_function(lambda: pool.waiting)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)
