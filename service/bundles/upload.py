"""One upload on its way into S3. `service` creates it.

If its length is known, it is streamed through one PutObject while it arrives. Otherwise it is
collected in parts: one part becomes a PutObject, several become a multipart upload, in which one
part is sent while the next one fills.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID

from service.bundles.background import Cleanup
from service.bundles.buffers import PartBuffer
from service.bundles.memory import Memory
from service.bundles.record import BundleRecord
from service.bundles.stream import StreamBroken, UploadStream
from service.errors import StorageUnavailable
from service.settings import MAX_PARTS, MIN_PART_SIZE
from service.telemetry import timing

_T = TypeVar("_T")


class Body(Protocol):
    """A request body of `size` bytes. After `rewind`, iterating starts again from the start.

    `on_arrival` calls back when the last byte has arrived from the client, or at once if it has,
    with the number of bytes that may have to be sent from then on.
    """

    size: int

    def __aiter__(self) -> AsyncIterator[bytes | bytearray]: ...
    def rewind(self) -> None: ...
    def on_arrival(self, callback: Callable[[int], None]) -> None: ...


class UploadStorage(Protocol):
    """The part of S3 that an upload needs. Every call may raise `StorageUnavailable`.

    The `fields` are those of the bundle's record. `complete_upload` may leave an object without
    them behind if it fails.
    """

    async def put(self, bundle_id: UUID, body: Body, fields: Mapping[str, str]) -> None: ...
    async def create_upload(self, bundle_id: UUID, fields: Mapping[str, str]) -> str: ...
    async def upload_part(
        self, bundle_id: UUID, upload_id: str, number: int, body: Body
    ) -> str: ...
    async def complete_upload(
        self, bundle_id: UUID, upload_id: str, etags: list[str], fields: Mapping[str, str]
    ) -> None: ...
    async def abort_uploads(self, bundle_id: UUID) -> None: ...
    async def delete(self, bundle_id: UUID) -> None: ...


class FailureWatch:
    """Interrupts the wait for a client when a request to S3 has failed meanwhile.

    Otherwise, a client that is silent would learn of the failure only after its next chunk.
    """

    def __init__(self) -> None:
        self._failed: asyncio.Task[Any] | None = None
        self._scope: asyncio.Timeout | None = None

    def add(self, request: asyncio.Task[Any]) -> None:
        request.add_done_callback(self._check)

    def _check(self, request: asyncio.Task[Any]) -> None:
        if self._scope is not None and not request.cancelled() and request.exception():
            self._failed = request
            self._scope.reschedule(0)

    @asynccontextmanager
    async def active(self) -> AsyncIterator[None]:
        """Raise the error of a request that fails inside this context, even during a wait."""
        try:
            async with asyncio.timeout(None) as self._scope:
                yield
        except TimeoutError:
            if self._failed is None:
                raise
            await self._failed
        finally:
            self._scope = None


class Upload(Protocol):
    """Call `write` for each chunk, then `complete`; after any error, call `roll_back`.

    While the `watch` is active, requests to S3 that fail are noticed between two chunks.
    """

    received: int
    watch: FailureWatch

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes of the bundle."""

    async def complete(self) -> None:
        """Create the object with its record. Called once, after all checks have passed."""

    async def roll_back(self) -> Cleanup | None:
        """Release the memory; return what removes the upload from S3, or `None` if not needed."""


class StreamedUpload:
    """An upload of `size` bytes, sent through one PutObject while it arrives.

    Its record is sent before its first byte, so it does not depend on its contents.
    """

    def __init__(
        self,
        storage: UploadStorage,
        memory: Memory,
        bundle_id: UUID,
        size: int,
        fields: Mapping[str, str],
    ) -> None:
        self.received = 0
        self.watch = FailureWatch()
        self._storage = storage
        self._bundle_id = bundle_id
        self._fields = fields
        self._replay = memory.replay()
        self._stream = UploadStream(size, self._replay)
        self._put: asyncio.Task[None] | None = None
        self._finishing = False

    async def write(self, chunk: bytes) -> None:
        if self.received and self._put is None:
            self._start()
        self.received += len(chunk)
        try:
            with timing.measure("s3"):
                await self._stream.send(chunk)
        except StreamBroken:
            assert self._put is not None
            await self._put
            raise StorageUnavailable from None

    async def complete(self) -> None:
        """Send the last bytes, which makes S3 create the object.

        This is shielded from cancellation: the object could still be created after `roll_back`,
        which therefore waits for the end of the request.
        """
        put = self._put or self._start()
        self._finishing = True
        self._stream.finish()
        with timing.measure("s3"):
            await asyncio.shield(put)
        self._replay.release()

    async def roll_back(self) -> Cleanup | None:
        put, self._put = self._put, None
        if put is not None:
            if not self._finishing:
                # The connection is closed before the last bytes, so S3 does not create the object.
                put.cancel()
            await asyncio.gather(put, return_exceptions=True)
        self._replay.release()
        if put is None:
            return None
        # Some stores keep what has arrived of an incomplete request.
        return partial(_remove, self._storage, self._bundle_id, multipart=False)

    def _start(self) -> asyncio.Task[None]:
        self._put = put = asyncio.create_task(
            self._storage.put(self._bundle_id, self._stream, self._fields),
            context=timing.detached(),
        )
        put.add_done_callback(lambda _: self._stream.fail())
        self.watch.add(put)
        return put


class BufferedUpload:
    """An upload of unknown length, up to `max_size` bytes, collected in parts.

    All parts but the last have the same size: Cloudflare R2 accepts nothing else. It is chosen when
    the first part has reached the smallest size, of which `MAX_PARTS` parts hold `max_size`.
    """

    def __init__(
        self,
        storage: UploadStorage,
        memory: Memory,
        bundle_id: UUID,
        max_size: int,
        record: BundleRecord,
    ) -> None:
        self.received = 0
        self.watch = FailureWatch()
        self._storage = storage
        self._memory = memory
        self._bundle_id = bundle_id
        self._record = record
        self._min_part_size = max(MIN_PART_SIZE, -(-max_size // MAX_PARTS))
        self._part_size: int | None = None
        self._part = memory.part()
        self._sent_part: PartBuffer | None = None
        self._multipart = False
        self._upload_id: str | None = None
        self._etags: list[str] = []
        self._part_upload: asyncio.Task[str] | None = None
        self._creation: asyncio.Future[Any] | None = None

    async def write(self, chunk: bytes) -> None:
        self.received += len(chunk)
        while chunk:
            if self._part_size is None and self._part.size == self._min_part_size:
                self._part_size = self._memory.choose_part_size(self._min_part_size)
            space = (self._part_size or self._min_part_size) - self._part.size
            if not space:
                await self._send_full_part()
                continue
            await self._part.append(chunk[:space])
            chunk = chunk[space:]

    async def complete(self) -> None:
        """Create the object with its record."""
        if self._upload_id is None:
            record = replace(self._record, size=self.received)
            creation = self._storage.put(self._bundle_id, self._part, record.to_fields())
        else:
            await self._finish_part()
            self._send_part(self._upload_id)
            await self._finish_part()
            creation = self._storage.complete_upload(
                self._bundle_id, self._upload_id, self._etags, self._record.to_fields()
            )
        await self._create(creation)
        self._release()

    async def roll_back(self) -> Cleanup | None:
        if self._part_upload is not None:
            self._part_upload.cancel()
        await asyncio.gather(
            *(task for task in (self._part_upload, self._creation) if task is not None),
            return_exceptions=True,
        )
        created = self._creation is not None
        # A failed task references its exception, whose traceback references the buffers.
        self._part_upload = self._creation = None
        self._release()
        if not created:
            return None
        return partial(_remove, self._storage, self._bundle_id, multipart=self._multipart)

    def _release(self) -> None:
        self._part.release()
        if self._sent_part is not None:
            self._sent_part.release()

    async def _send_full_part(self) -> None:
        """Send the current part, after the one before it, and start a new one."""
        if self._upload_id is None:
            self._multipart = True
            self._upload_id = await self._create(
                self._storage.create_upload(self._bundle_id, self._record.to_fields())
            )
        await self._finish_part()
        self._send_part(self._upload_id)
        self._part = self._memory.part()

    def _send_part(self, upload_id: str) -> None:
        self._sent_part = part = self._part
        self._part_upload = asyncio.create_task(
            self._storage.upload_part(self._bundle_id, upload_id, len(self._etags) + 1, part),
            context=timing.detached(),
        )
        self._part_upload.add_done_callback(lambda _: part.release())
        self.watch.add(self._part_upload)

    async def _finish_part(self) -> None:
        """Wait for the part that is being sent, if there is one."""
        if self._part_upload is not None:
            with timing.measure("s3"):
                self._etags.append(await self._part_upload)
            self._part_upload = None

    async def _create(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await a call that creates something in S3, shielded from cancellation.

        An interrupted call could still take effect after `roll_back`. So it is not interrupted, and
        `roll_back` waits for it.
        """
        self._creation = creation = asyncio.ensure_future(call)
        return await asyncio.shield(creation)


async def _remove(storage: UploadStorage, bundle_id: UUID, *, multipart: bool) -> None:
    """Abort the multipart uploads of a bundle, then delete its object.

    In this order, a CompleteMultipartUpload on its way either fails, or its object is deleted.
    """
    try:
        if multipart:
            await storage.abort_uploads(bundle_id)
    except StorageUnavailable:
        await storage.delete(bundle_id)
        raise
    await storage.delete(bundle_id)
