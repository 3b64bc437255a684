"""What one caller may cost this process: wrong proofs, uploads at once, bytes in an hour, windows.

A bundle without a receipt is read whole to check a proof: up to 100 MiB from S3 for a request of
300 bytes. So failed reads are limited for each bundle, and reads at once for the whole process.
`access` asks `ReadLimits` before it reads a bundle, and `service` asks `UploadLimits` before an
upload. `memory` asks `FairQueue` which transfer gets the next window.
"""

import asyncio
import math
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count, islice
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from service.errors import InvalidHmac, Overloaded, TooManyAttempts, TooManyUploads
from service.telemetry import timing

MAX_FAILURES = 5
"""Failed reads of one bundle within `FAILURE_PERIOD`, after which it is not read any more."""

FAILURE_PERIOD = 600.0
"""Seconds after which a failed read no longer counts."""

REFUSAL_DELAYS = (1.0, 2.0)
"""Seconds before a refusal: clients that ignore Retry-After would take CPU time from others.

The delay is random, because refused clients that come back together would delay others too.
"""

MAX_READS = 4
"""Reads at once, of all bundles. More would take too much CPU time from other transfers."""

SMALL_READ = 1 << 20
"""Bytes of a bundle up to which a read does not count as one of `MAX_READS`.

It costs no more than a small download, and should not wait until large bundles have been read.
"""

MAX_BUNDLES = 10_000
"""Bundles whose failed reads are remembered. Those whose last one is the oldest go first."""


HOUR = 3600.0

MAX_CALLERS = 10_000
"""Callers whose uploads are remembered. Those whose last upload is the oldest go first."""

UPLOAD_RETRY_AFTER = 5
"""Seconds after which a caller with too many uploads at once should try again."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who uploads: the `name` of an upload token, or for a JWT also its `subject`."""

    name: str
    subject: str = ""


ANYONE = Caller("")
"""Whoever needs no token: everyone who downloads or deletes, and uploads if none is required."""


class ReadLimits:
    """The limits of one process. `timeout` and `clock` are in seconds."""

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = timeout
        self._clock = clock
        self._slots = asyncio.Semaphore(MAX_READS)
        self._running = Counter[UUID]()
        self._failures: OrderedDict[UUID, deque[float]] = OrderedDict()
        self._read_ended = asyncio.Event()

    def exceeded(self, bundle_id: UUID) -> bool:
        """Return whether too many reads of the bundle have failed."""
        return self._count_failures(bundle_id) >= MAX_FAILURES

    @asynccontextmanager
    async def read(self, bundle_id: UUID, size: int) -> AsyncIterator[None]:
        """Wait until a bundle of `size` bytes may be read, which happens inside this context.

        A read has failed if it raises `InvalidHmac`. It has also failed if it is cancelled:
        otherwise a client could disconnect before the end of each read. Raises `TooManyAttempts`,
        and `Overloaded` after the timeout.
        """
        if self.exceeded(bundle_id):
            await asyncio.sleep(random.uniform(*REFUSAL_DELAYS))  # noqa: S311 - not a secret
        self._check(bundle_id)
        async with AsyncExitStack() as slot:
            try:
                with timing.measure("budget"):
                    async with asyncio.timeout(self._timeout):
                        if size > SMALL_READ:
                            await slot.enter_async_context(self._slots)
                        await self._wait_for_other_reads(bundle_id)
            except TimeoutError as error:
                raise Overloaded from error
            self._running[bundle_id] += 1
            try:
                yield
            except (InvalidHmac, asyncio.CancelledError):
                self._record_failure(bundle_id)
                raise
            finally:
                self._running.subtract([bundle_id])
                self._running += Counter()  # Drops those that are zero.
                self._read_ended.set()
                self._read_ended = asyncio.Event()

    async def _wait_for_other_reads(self, bundle_id: UUID) -> None:
        """Wait while those that run now could all fail and exceed the limit."""
        while self._count_failures(bundle_id) + self._running[bundle_id] >= MAX_FAILURES:
            self._check(bundle_id)
            await self._read_ended.wait()

    def _check(self, bundle_id: UUID) -> None:
        if self.exceeded(bundle_id):
            oldest = self._failures[bundle_id][0]
            raise TooManyAttempts(math.ceil(oldest + FAILURE_PERIOD - self._clock()))

    def _count_failures(self, bundle_id: UUID) -> int:
        failures = self._failures.get(bundle_id, deque[float]())
        while failures and failures[0] + FAILURE_PERIOD <= self._clock():
            failures.popleft()
        return len(failures)

    def _record_failure(self, bundle_id: UUID) -> None:
        self._failures.setdefault(bundle_id, deque()).append(self._clock())
        self._failures.move_to_end(bundle_id)
        if len(self._failures) > MAX_BUNDLES:
            self._failures.popitem(last=False)


class Waiting(Protocol):
    """A transfer of a `caller` that waits for a window."""

    caller: Caller


_W = TypeVar("_W", bound=Waiting)


class FairQueue(Generic[_W]):
    """The transfers that wait for one of `total` windows, and how many windows each caller has.

    They are served first come, first served, except that a caller with more than a tenth of all
    windows is passed over while a caller with fewer waits. `ANYONE` never counts as such a caller.
    Every operation takes O(log n) steps, however many callers and transfers wait.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._windows = Counter[Caller]()
        self._arrivals = count()
        self._callers: dict[Caller, OrderedDict[_W, int]] = {}  # With the number of each arrival.
        # A heap with the first transfer of each caller that is within its share. Entries that no
        # longer apply are dropped when they come first.
        self._heads: list[tuple[int, Caller]] = []

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def __bool__(self) -> bool:
        return bool(self._callers)

    def add_window(self, caller: Caller) -> None:
        self._windows[caller] += 1

    def remove_window(self, caller: Caller) -> None:
        excess = self._excess(caller)
        self._windows[caller] -= 1
        if not self._windows[caller]:
            del self._windows[caller]
        if excess and not self._excess(caller):
            self._push_head(caller)

    def append(self, waiter: _W) -> None:
        waiting = self._callers.setdefault(waiter.caller, OrderedDict())
        waiting[waiter] = next(self._arrivals)
        if len(waiting) == 1:
            self._push_head(waiter.caller)

    def remove(self, waiter: _W) -> None:
        """Remove a transfer, if it is there."""
        waiting = self._callers.get(waiter.caller, OrderedDict())
        if waiter not in waiting:
            return
        first = next(iter(waiting)) is waiter
        del waiting[waiter]
        if not waiting:
            del self._callers[waiter.caller]
        elif first:
            self._push_head(waiter.caller)
        if not self._callers:
            self._heads.clear()

    def first(self) -> _W:
        """Return the transfer that gets the next window."""
        while self._heads:
            arrival, caller = self._heads[0]
            if caller in self._callers and self._rank(caller) == (0, arrival):
                break
            heappop(self._heads)
        else:  # All callers that wait have more than a tenth, so there are at most nine.
            caller = min(self._callers, key=self._rank)
        return next(iter(self._callers[caller]))

    def _push_head(self, caller: Caller) -> None:
        if caller in self._callers and not self._excess(caller):
            heappush(self._heads, (self._rank(caller)[1], caller))

    def _rank(self, caller: Caller) -> tuple[int, int]:
        return self._excess(caller), next(iter(self._callers[caller].values()))

    def _excess(self, caller: Caller) -> int:
        """Return how many windows a caller has that has more than a tenth of all, or else 0."""
        windows = 0 if caller == ANYONE else self._windows[caller]
        return windows if 10 * windows > self._total else 0


class _Uploads:
    """The uploads of one caller: how many run, and the bytes of the last hour, `used` at `time`."""

    def __init__(self) -> None:
        self.running = 0
        self.used = self.time = 0.0


class UploadLimits:
    """The limits of each caller in one process, `None` without a limit. `clock` is in seconds.

    An hour's bytes may come at once. What was used becomes free again evenly over an hour.
    """

    def __init__(
        self,
        at_once: int | None = None,
        bytes_per_hour: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once = at_once
        self._bytes_per_hour = bytes_per_hour
        self._clock = clock
        self._callers: OrderedDict[Caller, _Uploads] = OrderedDict()

    @contextmanager
    def upload(self, caller: Caller, length: int | None) -> Iterator[Callable[[int], None]]:
        """Count an upload of at most `length` bytes; those that never arrive are given back.

        If the length is unknown, bytes are counted as they arrive. Yields a function that takes the
        number of bytes that have arrived. Both raise `TooManyUploads`.
        """
        uploads = self._callers.setdefault(caller, _Uploads())
        self._callers.move_to_end(caller)
        self._forget_the_oldest()
        if self._at_once is not None and uploads.running >= self._at_once:
            raise TooManyUploads(UPLOAD_RETRY_AFTER)
        missing = length or 1  # Counted, but not yet arrived.
        self._use(uploads, missing)

        def arrive(size: int) -> None:
            nonlocal missing
            if size > missing:
                self._use(uploads, size - missing)
            missing = max(missing - size, 0)

        uploads.running += 1
        try:
            yield arrive
        finally:
            uploads.running -= 1
            uploads.used = max(uploads.used - missing, 0)

    def _use(self, uploads: _Uploads, size: int) -> None:
        if self._bytes_per_hour is None:
            return
        rate, now = self._bytes_per_hour / HOUR, self._clock()
        uploads.used = max(uploads.used - rate * (now - uploads.time), 0)
        uploads.time = now
        excess = uploads.used + size - self._bytes_per_hour
        if excess > 0:
            raise TooManyUploads(math.ceil(excess / rate))
        uploads.used += size

    def _forget_the_oldest(self) -> None:
        """Keep the number of callers limited. Those that upload now are kept."""
        for caller in list(islice(self._callers, max(len(self._callers) - MAX_CALLERS, 0))):
            if not self._callers[caller].running:
                del self._callers[caller]
