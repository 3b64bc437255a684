"""Prometheus metrics of one process. No label value comes from a client.

`service.app` creates the one `Metrics`, passes it to the access log, `bundles.service` and `s3`,
which count with its attributes, and registers the memory pools. `http.routes` serves it at
`/metrics`. Prometheus itself adds the label that tells the replicas apart.
"""

from collections.abc import Callable
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
    """A memory pool: its size and use in bytes, and the number of transfers that wait for it."""

    total: int
    in_use: int

    @property
    def waiting(self) -> int: ...


class Metrics:
    """All metrics, as attributes named without `history_` and the unit. Times are in seconds."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        self.requests = Histogram(
            "history_request_seconds",
            "Seconds from request headers to the end of the response, by method, route and status.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.cut = Counter(
            "history_responses_cut_total",
            "Responses that were cut off after the status line, by route.",
            ["route"],
            registry=registry,
        )
        self.received = Counter(
            "history_received_bytes_total", "Bytes of request bodies.", registry=registry
        )
        self.sent = Counter(
            "history_sent_bytes_total", "Bytes of response bodies.", registry=registry
        )
        self.verifications = Counter(
            "history_verifications_total",
            "Proofs checked, by way (tag, receipt, memory, two_reads, one_read) and outcome.",
            ["way", "outcome"],
            registry=registry,
        )
        self.uploads = Counter(
            "history_uploads_total",
            "Uploads that were stored, by the name of their upload token (jwt for JWTs, empty if "
            "none is needed).",
            ["caller"],
            registry=registry,
        )
        self.uploads_aborted = Counter(
            "history_uploads_aborted_total",
            "Uploads that failed and were rolled back, by error code.",
            ["reason"],
            registry=registry,
        )
        self.s3 = Histogram(
            "history_s3_request_seconds",
            "Seconds of calls to S3 including retries, by operation and outcome.",
            ["operation", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.s3_retries = Counter(
            "history_s3_retries_total",
            "Requests to S3 that were retried, by operation.",
            ["operation"],
            registry=registry,
        )
        self.s3_resumed = Counter(
            "history_s3_downloads_resumed_total",
            "Downloads from S3 that were interrupted and resumed.",
            registry=registry,
        )
        self.memory_limit = Gauge(
            "history_memory_limit_bytes",
            "Bytes of bundle data that may be in memory at once: HISTORY_MEMORY_BUDGET.",
            registry=registry,
        )
        self.memory_replay = Gauge(
            "history_memory_replay_bytes",
            "Bytes of uploads that are kept to be sent to S3 again, in memory that nothing needs.",
            registry=registry,
        )
        self._memory = {
            name: Gauge(f"history_memory_{name}", description, ["pool"], registry=registry)
            for name, description in {
                "budget_bytes": "Bytes of bundle data that a pool may hold at once.",
                "used_bytes": "Bytes of bundle data that a pool holds, without replay buffers.",
                "waiters": "Transfers that wait for memory, by pool.",
            }.items()
        }

    def watch(self, name: str, pool: Pool, *, reclaimable: Callable[[], int] = lambda: 0) -> None:
        """Read the state of a memory pool at every scrape.

        `reclaimable` bytes do not count as used: they are free as soon as a transfer needs them.
        """
        self._memory["budget_bytes"].labels(name).set(pool.total)
        self._memory["used_bytes"].labels(name).set_function(lambda: pool.in_use - reclaimable())
        self._memory["waiters"].labels(name).set_function(lambda: pool.waiting)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
