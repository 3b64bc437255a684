"""What is measured, by turns on every way, and what comes of it."""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any, TypeVar

from tests.bench.parties import Service
from tests.bench.ways import (
    GIB,
    KIB,
    MIB,
    PREFIX,
    Bundle,
    Direct,
    Kind,
    SameCalls,
    Through,
    Timing,
    Way,
)

_T = TypeVar("_T")

MOST = 16
"""Transfers a round at most, one at a time; four at a time or more, four times as many."""


@dataclass(frozen=True)
class Work:
    """Transfers of a kind, of bundles of `size` bytes, so many `at_a_time`."""

    kind: Kind
    size: int
    at_a_time: int
    most: int = MOST

    def __str__(self) -> str:
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        return f"{self.kind} {size} x{self.at_a_time}"

    @property
    def count(self) -> int:
        """Transfers a round: some 64 MiB, and more than one for each at a time."""
        most = self.most * min(self.at_a_time, 4)
        return max(2 * self.at_a_time, min(most, 64 * MIB // self.size))

    @property
    def moved(self) -> int:
        """Bytes a transfer."""
        return self.size // 4 if self.kind == "range" else self.size


@dataclass(frozen=True)
class Batch:
    """One round's transfers on one way, and the seconds of CPU that the client took for them."""

    seconds: float
    timings: Sequence[Timing]
    client_cpu: float


@dataclass(frozen=True)
class Round:
    """The same transfers on every way; what those through the service cost it."""

    batches: dict[str, Batch]
    service_cpu: float
    s3_requests: int

    def ratio(self, of: str, to: str) -> float:
        """Of throughput on one way to that on another."""
        return self.batches[to].seconds / self.batches[of].seconds


class Bench:
    """One store, a service, and the ways to the store."""

    def __init__(
        self,
        service: Service,
        direct: Direct,
        same: SameCalls,
        relayed: SameCalls,
        through: Through,
    ) -> None:
        self._service = service
        self._direct = direct
        self._through = through
        self._ways: dict[str, Way] = {
            "direct": direct,
            "same calls": same,
            "relayed": relayed,
            "through": through,
        }

    async def measure(self, work: Work, rounds: int) -> dict[str, Any]:
        """A summary of `rounds`, after one to warm up; each begins with another way."""
        bundle = await stored(work, self._through)
        try:
            measured = [await self._round(work, bundle, number) for number in range(rounds + 1)]
        finally:
            await self._direct.delete([PREFIX + bundle_id for bundle_id in bundle.ids])
        return summary(work, measured[1:])

    async def _round(self, work: Work, bundle: Bundle, number: int) -> Round:
        if work.kind == "first download":
            await self._direct.forget_receipts(bundle.ids)
        batches = {}
        cost, requests = 0.0, 0
        names = list(self._ways)
        for name in islice(cycle(names), number, number + len(names)):
            called, cpu = self._service.s3_requests, self._service.cpu
            batches[name] = await batch(work, [self._ways[name]], bundle)
            if name == "through":
                cost = self._service.cpu - cpu
                requests = self._service.s3_requests - called
        for way in self._ways.values():
            await self._direct.delete(way.made)
            way.made.clear()
        return Round(batches, cost, requests)


async def stored(work: Work, way: Through) -> Bundle:
    """The bundle of a work; where it is for downloads, as many of it as there are of these."""
    bundle = Bundle(bytes(range(256)) * (work.size // 256))
    if work.kind.startswith("upload"):
        return bundle
    kind: Kind = "first download" if work.kind == "first download" else "upload with key"
    ids = await together(work.at_a_time, [partial(way.upload, kind, bundle)] * work.count)
    way.made.clear()
    return Bundle(bundle.content, ids)


async def batch(work: Work, ways: Sequence[Way], bundle: Bundle) -> Batch:
    """All transfers of a round, dealt out to these ways."""
    jobs = [
        partial(way.transfer, work.kind, bundle, number)
        for number, way in zip(range(work.count), cycle(ways))
    ]
    cpu, began = time.process_time(), time.perf_counter()
    timings = await together(work.at_a_time, jobs)
    return Batch(time.perf_counter() - began, timings, time.process_time() - cpu)


async def together(
    at_a_time: int, jobs: Sequence[Callable[[], Coroutine[Any, Any, _T]]]
) -> list[_T]:
    """All their results, in order."""
    free = asyncio.Semaphore(at_a_time)

    async def run(job: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        async with free:
            return await job()

    return await asyncio.gather(*map(run, jobs))


def summary(work: Work, rounds: Sequence[Round]) -> dict[str, Any]:
    """The medians of rounds: times in milliseconds, throughput in MiB/s."""
    others = [name for name in rounds[0].batches if name != "through"]
    cpu = statistics.median(it.service_cpu for it in rounds) / work.count
    return {
        "work": str(work),
        "kind": work.kind,
        "size": work.size,
        "at_a_time": work.at_a_time,
        "transfers": work.count * len(rounds),
        "ratio": {name: _spread([it.ratio("through", name) for it in rounds]) for name in others},
        "ways": {name: _way(work, name, rounds) for name in rounds[0].batches},
        "service_cpu": {
            "ms_per_transfer": round(cpu * 1000, 2),
            "s_per_gib": round(cpu * GIB / work.moved, 2),
            "to_bare_call": _spread(
                [it.service_cpu / it.batches["direct"].client_cpu for it in rounds]
            ),
        },
        "s3_requests": round(rounds[-1].s3_requests / work.count, 2),
    }


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


def _way(work: Work, name: str, rounds: Sequence[Round]) -> dict[str, float]:
    batches = [it.batches[name] for it in rounds]
    seconds = statistics.median(batch.seconds for batch in batches)
    timings = [timing for batch in batches for timing in batch.timings]
    whole = sorted(timing.whole * 1000 for timing in timings)
    return {
        "mib_per_s": round(work.count * work.moved / MIB / seconds, 1),
        "of_direct": _spread([it.ratio(name, "direct") for it in rounds])["median"],
        "p50": round(statistics.median(whole), 2),
        "p99": round(whole[len(whole) * 99 // 100], 2),
        "first_byte": round(statistics.median(it.first_byte * 1000 for it in timings), 2),
    }
