"""The operations on bundles: upload, download and delete. `http.routes` calls them.

A download or a delete is authorized before anything else happens, and `BundleService._authorize`
is the one place that decides. This module defines the `Storage` interface that it needs, which
`s3.storage` implements. It knows neither Starlette nor botocore.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from service.bundles.background import BackgroundTasks, CleanupQueue
from service.bundles.claims import UploadClaims, UploadVerifier
from service.bundles.download import (
    RECEIPT_TIMEOUT,
    Content,
    Download,
    DownloadContent,
    InMemoryContent,
)
from service.bundles.memory import Memory
from service.bundles.proof import HmacVerifier, Proof, compute_receipt, equal_digests
from service.bundles.ranges import ObjectStat, RangeRequest
from service.bundles.record import BundleRecord, expiry_time
from service.bundles.upload import Upload, UploadStorage
from service.drain import Drain
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
from service.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

OPEN_BODY_SIZE = 1 << 20
"""Bytes of memory that are reserved for a GetObject response while it is read."""

DELETE_ATTEMPTS = 10
"""How many times a delete is repeated while S3 still has the object."""


class StoredObject(Content, Protocol):
    """An object opened for reading. Iterating raises `StorageUnavailable` if S3 fails."""

    @property
    def stat(self) -> ObjectStat: ...


class Storage(UploadStorage, Protocol):
    """The part of S3 that bundles need. Every call may raise `StorageUnavailable`."""

    async def get_tags(self, bundle_id: UUID) -> Mapping[str, str]:
        """Return the object's tags. Raises `NotFound` if there is no object."""

    async def head(self, bundle_id: UUID) -> ObjectStat:
        """Return the object's metadata. Raises `NotFound` if there is no object."""

    async def open(
        self, bundle_id: UUID, *, etag: str | None = None, part: range | None = None
    ) -> StoredObject:
        """Open an object, or the bytes `part` of it; its `stat` always describes the whole object.

        Raises `NotFound` if there is no object, or none with this ETag.
        """


class BundleService:
    """All operations on bundles, on one `Storage`.

    `part_size` and `max_size` (of a bundle) are in bytes, `retention` in seconds. With
    `require_hmac`, a download needs a proof even if the bundle was uploaded without an HMAC.
    `clock` returns Unix seconds.
    """

    def __init__(  # noqa: PLR0913 - the settings, each by its name
        self,
        storage: Storage,
        memory: Memory,
        metrics: Metrics,
        drain: Drain,
        *,
        part_size: int,
        max_size: int,
        retention: int,
        require_hmac: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_size = max_size
        self.retention = retention
        self.require_hmac = require_hmac
        self._storage = storage
        self._memory = memory
        self._metrics = metrics
        self._drain = drain
        self._part_size = part_size
        self._clock = clock
        self._background = BackgroundTasks()
        self._cleanups = CleanupQueue()

    async def close(self) -> None:
        """Wait for uploads that are being cancelled, and for the cleanup after them."""
        await self._background.close()

    async def upload(
        self,
        chunks: AsyncIterator[bytes],
        claims: UploadClaims,
        *,
        ttl: int | None = None,
        length: int | None = None,
        form_overhead: int = 0,
    ) -> tuple[UUID, BundleRecord]:
        """Store a bundle for `ttl` seconds. When this returns, every replica can read it.

        `length` is the declared length in bytes. Up to `form_overhead` of it may be around the
        bundle. Raises `BundleTooLarge`, `Draining`, `Overloaded`, `EmptyBundle`, `DigestMismatch`,
        `HmacMismatch`, `StorageUnavailable`, and whatever `chunks` raises. After any of these, or
        after a cancellation, whatever has reached S3 is removed in the background.
        """
        if length is not None and length - form_overhead > self.max_size:
            raise BundleTooLarge(self.max_size)
        self._refuse_while_draining()
        started, verifier = self._clock(), UploadVerifier(claims)
        upload = Upload(self._storage, self._memory, part_size=self._part_size)
        with self._rollback_on_failure(upload):
            await upload.start(length)
            async for chunk in chunks:
                if upload.size + len(chunk) > self.max_size:
                    raise BundleTooLarge(self.max_size)
                verifier.update(chunk)
                await upload.write(chunk)
            if not upload.size:
                raise EmptyBundle
            expires_at = expiry_time(
                started=started,
                now=self._clock(),
                ttl=self.retention if ttl is None else ttl,
                retention=self.retention,
            )
            record = verifier.verify(upload.bundle_id, expires_at)
            await upload.complete(record.to_tags())
        return upload.bundle_id, record

    async def download(
        self, bundle_id: UUID, proof: Proof | None, requested: RangeRequest, *, body: bool = True
    ) -> Download:
        """Authorize a download of a bundle, or of a range of it; without `body`, as for HEAD.

        The caller closes `content`. Raises `Draining`, `NotFound`, `MissingHeader`, `InvalidHmac`,
        `PreconditionFailed`, `RangeNotSatisfiable`, `Overloaded`, `StorageUnavailable`.
        """
        with ExitStack() as resources:
            record, read = await self._authorize(bundle_id, proof, resources, keep=body)
            receipt = None
            if read is not None and proof is not None and record.hmac is not None:
                record = replace(record, receipt=compute_receipt(proof, bundle_id))
                receipt = self._background.start(self._store_receipt(bundle_id, record))
            if not body:
                if receipt is not None:
                    await asyncio.wait([receipt], timeout=RECEIPT_TIMEOUT)
                stat = read.stat if read else await self._storage.head(bundle_id)
                requested.select(stat)
                return Download(record, stat, None)
            if read is None:
                resources.enter_context(await self._memory.parts.acquire(OPEN_BODY_SIZE))
            stat, content, part = await self._content(bundle_id, requested, read)
            content = DownloadContent(content, resources.pop_all(), receipt)
            return Download(record, stat, content, part)

    async def delete(self, bundle_id: UUID, proof: Proof, requested: RangeRequest) -> None:
        """Delete a bundle. When this returns, no replica can read it any more.

        Raises what `download` raises. The delete is repeated until S3 no longer has the object: on
        Ceph, PutObjectTagging during a DeleteObject can restore the object.
        """
        with ExitStack() as resources:
            _, read = await self._authorize(bundle_id, proof, resources, keep=False)
        if requested.if_match is not None:
            requested.select(read.stat if read else await self._storage.head(bundle_id))
        for _ in range(DELETE_ATTEMPTS):
            await self._storage.delete(bundle_id)
            try:
                await self._storage.head(bundle_id)
            except NotFound:
                return
        raise StorageUnavailable

    async def _authorize(
        self, bundle_id: UUID, proof: Proof | None, resources: ExitStack, *, keep: bool
    ) -> tuple[BundleRecord, "_VerifiedRead | None"]:
        """Raise unless the proof opens the bundle.

        If neither the stored HMAC nor the receipt decides, the whole bundle is read and the result
        describes that read. With `keep`, and if the bundle fits in one part, the result includes
        the bytes, and `resources` releases their memory when it is closed.
        """
        self._refuse_while_draining()
        record = BundleRecord.from_tags(await self._storage.get_tags(bundle_id))
        if record is None or record.is_expired(self._clock()):
            raise NotFound
        if proof is None:
            if self.require_hmac or record.hmac is not None:
                raise MissingHeader("X-HMAC")
            return record, None
        if record.hmac is not None and not equal_digests(record.hmac, proof.hmac):
            self._count_verification("tag", valid=False)
        if record.receipt is not None:
            valid = equal_digests(record.receipt, compute_receipt(proof, bundle_id))
            self._count_verification("receipt", valid=valid)
            return record, None
        return record, await self._verify_by_reading(bundle_id, proof, resources, keep=keep)

    async def _verify_by_reading(
        self, bundle_id: UUID, proof: Proof, resources: ExitStack, *, keep: bool
    ) -> "_VerifiedRead":
        """Read the whole bundle and check its HMAC."""
        allocation = resources.enter_context(await self._memory.parts.acquire(self._part_size))
        verifier = HmacVerifier(proof.key)
        async with aclosing(await self._storage.open(bundle_id)) as stored:
            fits = keep and stored.stat.size <= self._part_size
            allocation.shrink(max(stored.stat.size, OPEN_BODY_SIZE) if fits else OPEN_BODY_SIZE)
            bundle, filled = allocation.buffer()[: stored.stat.size] if fits else None, 0
            async for chunk in stored:
                verifier.update(chunk)
                if bundle is not None:
                    bundle[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
        way = "memory" if fits else "two_reads" if keep else "one_read"
        self._count_verification(way, valid=verifier.matches(proof.hmac))
        # The rest of the buffer may still hold bytes of another bundle.
        return _VerifiedRead(stored.stat, None if bundle is None else bundle[:filled])

    def _count_verification(self, way: str, *, valid: bool) -> None:
        """Count a verification. Raises `InvalidHmac` if the proof is not valid."""
        self._metrics.verifications.labels(way, "held" if valid else "refused").inc()
        if not valid:
            raise InvalidHmac

    async def _content(
        self, bundle_id: UUID, requested: RangeRequest, read: "_VerifiedRead | None"
    ) -> tuple[ObjectStat, Content, range | None]:
        """Return the requested bytes, from memory if they are there, or else from S3."""
        if read is None and requested.unconditional:
            stored = await self._storage.open(bundle_id)
            return stored.stat, stored, None
        stat = read.stat if read else await self._storage.head(bundle_id)
        part = requested.select(stat)
        if read is not None and read.bundle is not None:
            return stat, InMemoryContent(read.bundle, part or range(stat.size)), part
        return stat, await self._storage.open(bundle_id, etag=stat.etag, part=part), part

    async def _store_receipt(self, bundle_id: UUID, record: BundleRecord) -> None:
        """Store the receipt, best effort.

        Without it, the next download has to read the whole bundle to verify it.
        """
        try:
            await self._storage.put_tags(bundle_id, record.to_tags())
        except (NotFound, StorageUnavailable):
            _log.warning(
                "a receipt could not be stored; the next download verifies the bundle again"
            )

    def _refuse_while_draining(self) -> None:
        if self._drain.refusing:
            raise Draining

    @contextmanager
    def _rollback_on_failure(self, upload: Upload) -> Iterator[None]:
        """Roll an upload back after any error or cancellation; `close` waits for that."""
        with self._background.include_current_task():
            try:
                yield
            except BaseException as error:
                self._metrics.uploads_aborted.labels(_reason(error)).inc()
                self._background.start(self._roll_back(upload))
                raise

    async def _roll_back(self, upload: Upload) -> None:
        """Remove everything of an upload from S3, retrying until S3 is available again."""
        if cleanup := await upload.roll_back():
            await self._cleanups.run(cleanup)


def _reason(error: BaseException) -> str:
    """Return the error code that the metrics show as the reason for a failed upload."""
    if isinstance(error, HistoryError | ClientGone):
        return error.code
    return "shutdown" if isinstance(error, asyncio.CancelledError) else "internal_error"


@dataclass(frozen=True, slots=True)
class _VerifiedRead:
    """A bundle that was read to verify its proof, with its bytes if they were kept."""

    stat: ObjectStat
    bundle: memoryview | None
