"""The use cases: a bundle is deposited, and withdrawn or discarded by who can prove its HMAC.

A withdrawal decides everything before it hands out the first byte, and `Bundles._proven` is the one
place that does. This module owns the `Storage` it needs; it knows neither HTTP nor botocore.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from service.background import Background
from service.budget import Memory
from service.claim import Arrival, Claim
from service.content import RECEIPT_TIMEOUT, Content, Held, InMemory
from service.errors import (
    BundleTooLarge,
    ClientGone,
    Draining,
    EmptyBundle,
    HistoryError,
    InvalidHmac,
    MissingHeader,
    NotFound,
    StorageUnavailable,
)
from service.leftovers import Leftovers
from service.metrics import Metrics
from service.proof import Proof, Verification, receipt, same
from service.ranges import Stat, Wanted
from service.readiness import Drain
from service.record import BundleRecord, expiry
from service.upload import Sink, Upload

_log = logging.getLogger(__name__)

OPEN_BODY = 1 << 20
"""Bytes of memory that an object opened for reading is reckoned to take."""

DELETE_ROUNDS = 10
"""How often a delete is repeated while S3 still has the object."""


class StoredObject(Content, Protocol):
    """An object opened for reading; iterating fails with `StorageUnavailable` if S3 breaks off."""

    @property
    def stat(self) -> Stat: ...


class Storage(Sink, Protocol):
    """The part of S3 that bundles need. Every call may raise `StorageUnavailable`."""

    async def get_tags(self, bundle_id: UUID) -> Mapping[str, str]:
        """`NotFound` if there is no object."""

    async def head(self, bundle_id: UUID) -> Stat:
        """`NotFound` if there is no object."""

    async def open(
        self, bundle_id: UUID, *, etag: str | None = None, part: range | None = None
    ) -> StoredObject:
        """Open all of an object or a part of its bytes; `stat` tells of all of it.

        `NotFound` if there is no object, or none with this ETag.
        """


@dataclass(frozen=True, slots=True)
class Released:
    """A bundle whose proof holds: `part` of it, or all. `content` is `None` for HEAD."""

    record: BundleRecord
    stat: Stat
    content: Content | None
    part: range | None = None


class Bundles:
    """All that can be done with bundles, on one `Storage`.

    `part_size` and `limit` (the largest bundle) are bytes, `retention` seconds; `require_hmac`
    refuses those who present no proof even where a bundle was uploaded without an HMAC.
    """

    def __init__(  # noqa: PLR0913 - the settings, each by its name
        self,
        storage: Storage,
        memory: Memory,
        metrics: Metrics,
        drain: Drain,
        *,
        part_size: int,
        limit: int,
        retention: int,
        require_hmac: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limit = limit
        self.retention = retention
        self.require_hmac = require_hmac
        self._storage = storage
        self._memory = memory
        self._metrics = metrics
        self._drain = drain
        self._part_size = part_size
        self._clock = clock
        self._background = Background()
        self._leftovers = Leftovers()

    async def close(self) -> None:
        """Wait for deposits that are being cancelled, and for what they leave to be removed."""
        await self._background.close()

    async def deposit(
        self,
        chunks: AsyncIterator[bytes],
        claim: Claim,
        *,
        life: int | None = None,
        length: int | None = None,
        envelope: int = 0,
    ) -> tuple[UUID, BundleRecord]:
        """Store a bundle for `life` seconds; when this returns, every replica can read it.

        `length` is how many bytes were declared, up to `envelope` of them around the bundle. Raises
        `BundleTooLarge`, `Draining`, `Overloaded`, `EmptyBundle`, `DigestMismatch`, `HmacMismatch`,
        `StorageUnavailable`, and whatever `chunks` raises; after any of these, or a cancellation,
        what had reached S3 is removed in the background.
        """
        if length is not None and length - envelope > self.limit:
            raise BundleTooLarge(self.limit)
        self._take_on_work()
        started, arrival = self._clock(), Arrival(claim)
        upload = Upload(self._storage, self._memory, part_size=self._part_size)
        with self._undone_unless_finished(upload):
            await upload.begin(length)
            async for chunk in chunks:
                if upload.size + len(chunk) > self.limit:
                    raise BundleTooLarge(self.limit)
                arrival.update(chunk)
                await upload.write(chunk)
            if not upload.size:
                raise EmptyBundle
            expires_at = expiry(
                started=started,
                now=self._clock(),
                life=self.retention if life is None else life,
                retention=self.retention,
            )
            record = arrival.record(upload.bundle_id, expires_at)
            await upload.finish(record.to_tags())
        return upload.bundle_id, record

    async def withdraw(
        self, bundle_id: UUID, proof: Proof | None, wanted: Wanted, *, body: bool = True
    ) -> Released:
        """Release what is `wanted` of a bundle, or with no `body` what is known of it.

        The caller closes `content`. Raises `Draining`, `NotFound`, `MissingHeader`, `InvalidHmac`,
        `PreconditionFailed`, `RangeNotSatisfiable`, `Overloaded`, `StorageUnavailable`.
        """
        with ExitStack() as held:
            record, seen = await self._proven(bundle_id, proof, held, keep=body)
            noting = None
            if seen is not None and proof is not None and record.hmac is not None:
                record = replace(record, receipt=receipt(proof, bundle_id))
                noting = self._background.start(self._note(bundle_id, record))
            if not body:
                if noting is not None:
                    await asyncio.wait([noting], timeout=RECEIPT_TIMEOUT)
                stat = seen.stat if seen else await self._storage.head(bundle_id)
                wanted.of(stat)
                return Released(record, stat, None)
            if seen is None:
                held.enter_context(await self._memory.parts.take(OPEN_BODY))
            stat, content, part = await self._content(bundle_id, wanted, seen)
            content = Held(content, held.pop_all(), noting)
            return Released(record, stat, content, part)

    async def discard(self, bundle_id: UUID, proof: Proof, wanted: Wanted) -> None:
        """Remove a bundle for every replica; when this returns, it is gone.

        Raises what `withdraw` does. S3 is asked until it says so: on Ceph a tag that is being
        written while an object is deleted can bring it back.
        """
        with ExitStack() as held:
            _, seen = await self._proven(bundle_id, proof, held, keep=False)
        if wanted.if_match is not None:
            wanted.of(seen.stat if seen else await self._storage.head(bundle_id))
        for _ in range(DELETE_ROUNDS):
            await self._storage.delete(bundle_id)
            try:
                await self._storage.head(bundle_id)
            except NotFound:
                return
        raise StorageUnavailable

    async def _proven(
        self, bundle_id: UUID, proof: Proof | None, held: ExitStack, *, keep: bool
    ) -> tuple[BundleRecord, "_Seen | None"]:
        """Decide whether a bundle is released: it is, unless this raises.

        Where neither the record nor its receipt decides, the whole bundle is read; what of it was
        `_Seen` comes back, with its bytes if they are to be kept and fit in one part, and the
        memory for it is `held`.
        """
        self._take_on_work()
        record = BundleRecord.from_tags(await self._storage.get_tags(bundle_id))
        if record is None or record.expired(self._clock()):
            raise NotFound
        if proof is None:
            if self.require_hmac or record.hmac is not None:
                raise MissingHeader("X-HMAC")
            return record, None
        if record.hmac is not None and not same(record.hmac, proof.hmac):
            self._decide("tag", holds=False)
        if record.receipt is not None:
            self._decide("receipt", holds=same(record.receipt, receipt(proof, bundle_id)))
            return record, None
        lease = held.enter_context(await self._memory.parts.take(self._part_size))
        verification = Verification(proof.key)
        async with aclosing(await self._storage.open(bundle_id)) as stored:
            fits = keep and stored.stat.size <= self._part_size
            lease.shrink(max(stored.stat.size, OPEN_BODY) if fits else OPEN_BODY)
            bundle, at = lease.buffer()[: stored.stat.size] if fits else None, 0
            async for chunk in stored:
                verification.update(chunk)
                if bundle is not None:
                    bundle[at : at + len(chunk)] = chunk
                    at += len(chunk)
        way = "memory" if fits else "two_reads" if keep else "one_read"
        self._decide(way, holds=verification.holds(proof.hmac))
        # Behind what was read, its memory may hold another bundle.
        return record, _Seen(stored.stat, None if bundle is None else bundle[:at])

    def _decide(self, way: str, *, holds: bool) -> None:
        """Count a verification. Raises `InvalidHmac` where the proof does not hold."""
        self._metrics.verifications.labels(way, "held" if holds else "refused").inc()
        if not holds:
            raise InvalidHmac

    async def _content(
        self, bundle_id: UUID, wanted: Wanted, seen: "_Seen | None"
    ) -> tuple[Stat, Content, range | None]:
        """What is wanted of a released bundle, out of memory or out of S3."""
        if seen is None and wanted.unconditional:
            stored = await self._storage.open(bundle_id)
            return stored.stat, stored, None
        stat = seen.stat if seen else await self._storage.head(bundle_id)
        part = wanted.of(stat)
        if seen is not None and seen.bundle is not None:
            return stat, InMemory(seen.bundle, part or range(stat.size)), part
        return stat, await self._storage.open(bundle_id, etag=stat.etag, part=part), part

    async def _note(self, bundle_id: UUID, record: BundleRecord) -> None:
        """Keep a receipt, if it can be: without one the next download reads the bundle again."""
        try:
            await self._storage.put_tags(bundle_id, record.to_tags())
        except (NotFound, StorageUnavailable):
            _log.warning("a receipt could not be kept")

    def _take_on_work(self) -> None:
        """Raise `Draining` where no more is taken on."""
        if self._drain.refusing:
            raise Draining

    @contextmanager
    def _undone_unless_finished(self, upload: Upload) -> Iterator[None]:
        """Undo an upload that anything ends but success, and let `close` wait for that."""
        with self._background.awaited():
            try:
                yield
            except BaseException as error:
                self._metrics.uploads_aborted.labels(_reason(error)).inc()
                self._background.start(self._undo(upload))
                raise

    async def _undo(self, upload: Upload) -> None:
        """Leave nothing of an upload in S3, if it takes until S3 is there again."""
        if removal := await upload.undo():
            await self._leftovers.remove(removal)


def _reason(error: BaseException) -> str:
    """What ended an upload, in a word for the metrics."""
    if isinstance(error, HistoryError | ClientGone):
        return error.code
    return "shutdown" if isinstance(error, asyncio.CancelledError) else "internal_error"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A bundle that was read to check its proof, with its bytes where they were kept."""

    stat: Stat
    bundle: memoryview | None
