"""Workloads, and how each is measured with every variant in turn."""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any, TypeVar

from tests.bench.processes import Service
from tests.bench.variants import (
    GIB,
    KIB,
    MIB,
    PREFIX,
    Bundle,
    Kind,
    SameCalls,
    SingleCall,
    ThroughService,
    Timing,
    Variant,
)

_T = TypeVar("_T")

MAX_TRANSFERS = 16
"""The maximum number of transfers in a round with a concurrency of 1.

It grows with the concurrency: 4 and more allow 4 times as many.
"""


RECEIPT_TIME = 0.2
"""Seconds in which the service stores the receipts after the last first download of a round."""


@dataclass(frozen=True)
class Workload:
    """Transfers of one kind, of bundles of `size` bytes, with `concurrency` of them at a time."""

    kind: Kind
    size: int
    concurrency: int
    max_transfers: int = MAX_TRANSFERS

    def __str__(self) -> str:
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        return f"{self.kind} {size} x{self.concurrency}"

    @property
    def transfers(self) -> int:
        """Transfers in a round: about 64 MiB in total, and at least two for each at a time."""
        limit = self.max_transfers * min(self.concurrency, 4)
        return max(2 * self.concurrency, min(limit, 64 * MIB // self.size))

    @property
    def bytes_per_transfer(self) -> int:
        return self.size // 4 if self.kind == "range" else self.size


@dataclass(frozen=True)
class Batch:
    """The transfers of one round with one variant. `client_cpu` is in seconds of CPU time."""

    seconds: float
    timings: Sequence[Timing]
    client_cpu: float


@dataclass(frozen=True)
class Round:
    """The same transfers with every variant.

    `service_cpu` is the service's CPU time in seconds, `s3_requests` the number of its S3 requests.
    """

    batches: dict[str, Batch]
    service_cpu: float
    s3_requests: int

    def throughput_ratio(self, variant: str, baseline: str) -> float:
        """Return the throughput of a variant divided by that of another."""
        return self.batches[baseline].seconds / self.batches[variant].seconds

    @property
    def time_ratio(self) -> float:
        """The median time of a transfer with the service, divided by that of a single call."""
        through, direct = (
            statistics.median(timing.total for timing in self.batches[name].timings)
            for name in ("through", "direct")
        )
        return through / direct


class Benchmark:
    """Measures workloads with one store and one service.

    The names of the variants are keys in results.json.
    """

    def __init__(
        self,
        service: Service,
        direct: SingleCall,
        same_calls: SameCalls,
        relayed: SameCalls,
        through: ThroughService,
    ) -> None:
        self._service = service
        self._direct = direct
        self._through = through
        self._variants: dict[str, Variant] = {
            "direct": direct,
            "same calls": same_calls,
            "relayed": relayed,
            "through": through,
        }

    async def measure(self, workload: Workload, rounds: int) -> dict[str, Any]:
        """Run one round to warm up and then `rounds` more, and return a summary of the latter.

        Each round starts with another variant.
        """
        bundle = await prepare_bundle(workload, self._through)
        try:
            results = [
                await self._run_round(workload, bundle, number) for number in range(rounds + 1)
            ]
        finally:
            await self._direct.delete([PREFIX + bundle_id for bundle_id in bundle.ids])
        return summarize(workload, results[1:])

    async def _run_round(self, workload: Workload, bundle: Bundle, number: int) -> Round:
        if workload.kind == "first download":
            await self._direct.delete_receipts(bundle.ids)
        batches = {}
        service_cpu, s3_requests = 0.0, 0
        names = list(self._variants)
        for name in islice(cycle(names), number, number + len(names)):
            requests_before = self._service.s3_requests
            receipts_before = self._service.stored_receipts
            cpu_before = self._service.cpu
            batches[name] = await run_batch(workload, [self._variants[name]], bundle)
            await self._variants[name].settle()
            if name == "through":
                stores_receipts = workload.kind == "first download"
                # Reading the metrics takes CPU time, so it has to wait.
                await asyncio.sleep(RECEIPT_TIME if stores_receipts else 0)
                service_cpu = self._service.cpu - cpu_before
                if stores_receipts:
                    await self._wait_for_receipts(receipts_before + workload.transfers)
                s3_requests = self._service.s3_requests - requests_before
        for variant in self._variants.values():
            await self._direct.delete(variant.created_keys)
            variant.created_keys.clear()
        return Round(batches, service_cpu, s3_requests)

    async def _wait_for_receipts(self, count: int) -> None:
        """Wait until the service has stored so many receipts. The next round deletes them."""
        for _ in range(500):
            if self._service.stored_receipts >= count:
                return
            await asyncio.sleep(0.02)
        raise TimeoutError


async def prepare_bundle(workload: Workload, service: ThroughService) -> Bundle:
    """Return the bundle of a workload. For downloads, store a copy for each one in a round."""
    bundle = Bundle(bytes(range(256)) * (workload.size // 256))
    if workload.kind.startswith("upload"):
        return bundle
    kind: Kind = "first download" if workload.kind == "first download" else "upload with key"
    uploads = [partial(service.upload, kind, bundle)] * workload.transfers
    ids = await run_concurrently(workload.concurrency, uploads)
    service.created_keys.clear()
    return Bundle(bundle.content, ids)


async def run_batch(workload: Workload, variants: Sequence[Variant], bundle: Bundle) -> Batch:
    """Make all transfers of a round, distributed over these variants in turn."""
    transfers = [
        partial(variant.transfer, workload.kind, bundle, number)
        for number, variant in zip(range(workload.transfers), cycle(variants))
    ]
    cpu_before, started = time.process_time(), time.perf_counter()
    timings = await run_concurrently(workload.concurrency, transfers)
    seconds = time.perf_counter() - started
    return Batch(seconds, timings, time.process_time() - cpu_before)


async def run_concurrently(
    limit: int, functions: Sequence[Callable[[], Coroutine[Any, Any, _T]]]
) -> list[_T]:
    """Call the functions, at most `limit` at a time, and return their results in order."""
    semaphore = asyncio.Semaphore(limit)

    async def run(function: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        async with semaphore:
            return await function()

    return await asyncio.gather(*map(run, functions))


def summarize(workload: Workload, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the medians of the rounds: times in milliseconds, throughput in MiB/s."""
    others = [name for name in rounds[0].batches if name != "through"]
    service_cpu = statistics.median(result.service_cpu for result in rounds) / workload.transfers
    return {
        "work": str(workload),
        "kind": workload.kind,
        "size": workload.size,
        "at_a_time": workload.concurrency,
        "transfers": workload.transfers * len(rounds),
        "ratio": {
            name: _spread([result.throughput_ratio("through", name) for result in rounds])
            for name in others
        },
        "time_to_bare_call": _spread([result.time_ratio for result in rounds]),
        "ways": {name: _summarize_variant(workload, name, rounds) for name in rounds[0].batches},
        "service_cpu": {
            "ms_per_transfer": round(service_cpu * 1000, 2),
            "s_per_gib": round(service_cpu * GIB / workload.bytes_per_transfer, 2),
            "to_bare_call": _spread(
                [result.service_cpu / result.batches["direct"].client_cpu for result in rounds]
            ),
        },
        "s3_requests": round(rounds[-1].s3_requests / workload.transfers, 2),
    }


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


def _summarize_variant(workload: Workload, name: str, rounds: Sequence[Round]) -> dict[str, float]:
    batches = [result.batches[name] for result in rounds]
    seconds = statistics.median(batch.seconds for batch in batches)
    timings = [timing for batch in batches for timing in batch.timings]
    durations = sorted(timing.total * 1000 for timing in timings)
    mib = workload.transfers * workload.bytes_per_transfer / MIB
    ratios = [result.throughput_ratio(name, "direct") for result in rounds]
    return {
        "mib_per_s": round(mib / seconds, 1),
        "of_direct": _spread(ratios)["median"],
        "p50": round(statistics.median(durations), 2),
        "p99": round(durations[len(durations) * 99 // 100], 2),
        "first_byte": round(statistics.median(timing.first_byte * 1000 for timing in timings), 2),
    }
