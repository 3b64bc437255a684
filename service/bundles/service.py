"""The operations on bundles: upload, download and delete. `http.routes` calls them.

Knows neither HTTP nor botocore. `access` decides who may download or delete a bundle, before its
first byte is sent.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from uuid import UUID, uuid4

from service.bundles.access import (
    BundleAccess,
    Content,
    Download,
    DownloadContent,
    InMemoryContent,
    Storage,
)
from service.bundles.background import BackgroundTasks, CleanupQueue
from service.bundles.limits import ANYONE, Caller, UploadLimits
from service.bundles.memory import Memory
from service.bundles.proof import Proof, UploadClaims, UploadVerifier, compute_receipt
from service.bundles.ranges import RangeRequest
from service.bundles.record import BundleRecord, expiry_time
from service.bundles.upload import BufferedUpload, StreamedUpload, Upload
from service.drain import Drain
from service.errors import (
    BundleTooLarge,
    ClientGone,
    Draining,
    EmptyBundle,
    HistoryError,
    NotFound,
    StorageUnavailable,
    UploadTimeout,
)
from service.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

MAX_PUT_SIZE = 5 << 30
"""Bytes of the largest object that one PutObject can create (S3's limit)."""

LATE_WRITES = 1.0
"""Seconds for which a store may still write what had arrived of a request that was cut.

versitygw does: it creates the truncated object, or a part and with it the aborted upload.
"""

DELETE_ATTEMPTS = 10
"""How many times a delete is repeated while S3 still has the object."""


class BundleService:
    """All operations on bundles, on one `Storage`.

    `max_size` (of a bundle) is in bytes, `retention` in seconds. With `require_hmac`, a download
    needs a proof even if the bundle was uploaded without an HMAC. `clock` returns Unix seconds.
    """

    def __init__(  # noqa: PLR0913 - the settings, each by its name
        self,
        storage: Storage,
        memory: Memory,
        limits: UploadLimits,
        metrics: Metrics,
        drain: Drain,
        *,
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
        self._limits = limits
        self._metrics = metrics
        self._drain = drain
        self._clock = clock
        self._access = BundleAccess(
            storage, memory, metrics, require_hmac=require_hmac, clock=clock
        )
        self._background = BackgroundTasks()
        self._cleanups = CleanupQueue()

    def now(self) -> float:
        """Return the Unix time in seconds, by the clock that decides when bundles expire."""
        return self._clock()

    async def close(self) -> None:
        """Wait for uploads that are being cancelled, and for the cleanup after them."""
        await self._background.close()

    async def upload(  # noqa: PLR0913 - what is known about an upload, each by its name
        self,
        chunks: AsyncIterator[bytes],
        claims: UploadClaims,
        *,
        started: float | None = None,
        ttl: int | None = None,
        length: int | None = None,
        form_overhead: int = 0,
        caller: Caller = ANYONE,
    ) -> tuple[UUID, BundleRecord]:
        """Store a bundle for `ttl` seconds. When this returns, every replica can read it.

        The request has `started` at this Unix time, by default now. `length` is the declared length
        in bytes. Up to `form_overhead` of it may be around the bundle. Raises `BundleTooLarge`,
        `Draining`, `TooManyUploads`, `Overloaded`, `UploadTimeout`, `EmptyBundle`,
        `DigestMismatch`, `HmacMismatch`, `StorageUnavailable`, and whatever `chunks` raises. After
        any of these, or after a cancellation, whatever has reached S3 is removed in the background.
        """
        started = self.now() if started is None else started
        if length is not None and length - form_overhead > self.max_size:
            raise BundleTooLarge(self.max_size)
        self._refuse_while_draining()
        await self._storage.require_records()
        size = None if form_overhead or length is None or length > MAX_PUT_SIZE else length
        expires_at = expiry_time(started, self.retention if ttl is None else ttl)
        bundle_id, verifier = uuid4(), UploadVerifier(claims)
        record = claims.record(bundle_id, expires_at, size)
        most = None if length is None else min(length, self.max_size)
        with self._limits.upload(caller, most) as arrive, await self._memory.window(caller):
            upload = self._start_upload(bundle_id, record)
            with self._rollback_on_failure(upload):
                async with upload.watch.active():
                    async for chunk in chunks:
                        if upload.received + len(chunk) > self.max_size:
                            raise BundleTooLarge(self.max_size)
                        arrive(len(chunk))
                        verifier.update(chunk)
                        await upload.write(chunk)
                if not upload.received:
                    raise EmptyBundle
                if record.size not in {None, upload.received}:
                    raise ClientGone
                verifier.verify()
                self._check_expiry(record)
                await upload.complete()
                self._check_expiry(record)  # S3 may take long.
        return bundle_id, record

    def discard(self, bundle_id: UUID) -> None:
        """Delete an uploaded bundle in the background, because its client has gone."""
        self._metrics.uploads_aborted.labels(ClientGone.code).inc()
        self._background.start(self._cleanups.run(partial(self._storage.delete, bundle_id)))

    def _check_expiry(self, record: BundleRecord) -> None:
        if record.is_expired(self._clock()):
            raise UploadTimeout

    def _start_upload(self, bundle_id: UUID, record: BundleRecord) -> Upload:
        if record.size is None:
            return BufferedUpload(self._storage, self._memory, bundle_id, self.max_size, record)
        return StreamedUpload(
            self._storage, self._memory, bundle_id, record.size, record.to_fields()
        )

    async def download(
        self, bundle_id: UUID, proof: Proof | None, requested: RangeRequest, *, body: bool = True
    ) -> Download:
        """Authorize a download of a bundle, or of a range of it; without `body`, as for HEAD.

        The caller closes `content`. Raises `Draining`, `NotFound`, `MissingHeader`, `InvalidHmac`,
        `TooManyAttempts`, `PreconditionFailed`, `RangeNotSatisfiable`, `Overloaded`,
        `StorageUnavailable`.
        """
        self._refuse_while_draining()
        whole = body and requested.unconditional
        async with AsyncExitStack() as resources:
            resources.enter_context(await self._memory.window())
            record, stat, stored = await self._access.look_up(bundle_id, resources, whole=whole)
            chunks = None
            if proof is None:
                self._access.check_open(record)
            elif not self._access.check_proof(bundle_id, record, proof):
                chunks = await self._access.verify_by_reading(
                    bundle_id, stored or stat, proof, resources, keep=body
                )
                self._store_receipt(bundle_id, record, proof)
                stored = None  # It has been read.
            part = requested.select(stat)
            if not body:
                return Download(record, stat, None)
            content: Content
            if chunks is not None:
                content = InMemoryContent(chunks, part or range(stat.size))
            elif stored is not None:
                content = stored
            else:
                content = await self._access.open(bundle_id, resources, etag=stat.etag, part=part)
            return Download(record, stat, DownloadContent(content, resources.pop_all()), part)

    async def delete(self, bundle_id: UUID, proof: Proof, requested: RangeRequest) -> None:
        """Delete a bundle. When this returns, no replica can read it any more.

        Raises what `download` raises. The delete is repeated until S3 no longer has the object: on
        Ceph, PutObjectTagging during a DeleteObject can restore the object.
        """
        self._refuse_while_draining()
        async with AsyncExitStack() as resources:
            resources.enter_context(await self._memory.window())
            record, stat, _ = await self._access.look_up(bundle_id, resources, whole=False)
            if not self._access.check_proof(bundle_id, record, proof):
                await self._access.verify_by_reading(bundle_id, stat, proof, resources, keep=False)
        requested.select(stat)
        for _ in range(DELETE_ATTEMPTS):
            await self._storage.delete(bundle_id)
            try:
                await self._storage.head(bundle_id)
            except NotFound:
                return
        raise StorageUnavailable

    def _store_receipt(self, bundle_id: UUID, record: BundleRecord, proof: Proof) -> None:
        """Store the receipt in the background, best effort.

        Without it, the next download has to read the whole bundle to verify it.
        """
        if record.hmac is not None and self._storage.records_in_tags:
            record = replace(record, receipt=compute_receipt(proof, bundle_id))
            self._background.start(self._put_tags(bundle_id, record))

    async def _put_tags(self, bundle_id: UUID, record: BundleRecord) -> None:
        try:
            await self._storage.put_tags(bundle_id, record.to_fields())
        except NotFound:
            return  # The bundle has been deleted.
        except StorageUnavailable:
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
        """Remove everything of an upload from S3, retrying until S3 is available again.

        This is repeated once after `LATE_WRITES`, unless S3 has failed again.
        """
        if cleanup := await upload.roll_back():
            await self._cleanups.run(cleanup)
            await asyncio.sleep(LATE_WRITES)
            with suppress(StorageUnavailable):
                await cleanup()


def _reason(error: BaseException) -> str:
    """Return the error code that the metrics show as the reason for a failed upload."""
    if isinstance(error, HistoryError | ClientGone):
        return error.code
    return "shutdown" if isinstance(error, asyncio.CancelledError) else "internal_error"
