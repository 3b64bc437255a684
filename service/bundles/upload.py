"""One upload on its way into S3: a PutObject, or a multipart upload. `service` creates it.

In a multipart upload, one part is sent while the next one fills.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

from service.bundles.background import Cleanup
from service.bundles.memory import SLOT_SIZE, Allocation, Memory
from service.telemetry import timing

_T = TypeVar("_T")


class UploadStorage(Protocol):
    """The part of S3 that an upload needs. Every call may raise `StorageUnavailable`."""

    async def put(self, bundle_id: UUID, body: memoryview, tags: Mapping[str, str]) -> None: ...
    async def create_upload(self, bundle_id: UUID) -> str: ...
    async def upload_part(
        self, bundle_id: UUID, upload_id: str, number: int, body: memoryview
    ) -> str: ...
    async def complete_upload(self, bundle_id: UUID, upload_id: str, etags: list[str]) -> None: ...
    async def abort_uploads(self, bundle_id: UUID) -> None: ...
    async def put_tags(self, bundle_id: UUID, tags: Mapping[str, str]) -> None: ...
    async def delete(self, bundle_id: UUID) -> None: ...


class Upload:
    """One upload: call `start`, `write` and `complete`; after any error, call `roll_back`.

    An upload holds one buffer of `part_size` bytes, and a second one if that is free at once.
    """

    def __init__(self, storage: UploadStorage, memory: Memory, *, part_size: int) -> None:
        self.bundle_id = uuid4()
        self.size = 0
        self._storage = storage
        self._memory = memory
        self._part_size = part_size
        self._allocations: list[Allocation] = []
        self._buffer = memoryview(b"")
        self._filled = 0
        self._multipart = False
        self._upload_id: str | None = None
        self._etags: list[str] = []
        self._part_upload: asyncio.Task[str] | None = None
        self._creation: asyncio.Future[Any] | None = None

    async def start(self, length: int | None) -> None:
        """Wait for memory before anything is read: for one part, or for `length` if that is less.

        An upload of unknown length starts in a small slot, because most of these are small. Raises
        `Overloaded`.
        """
        if length is None:
            self._fill(await self._memory.slots.acquire(SLOT_SIZE))
        else:
            await self._acquire_part(min(length, self._part_size))

    async def write(self, chunk: bytes) -> None:
        """Append bytes to the bundle. A full part is sent only when more bytes follow."""
        rest = memoryview(chunk)
        while rest:
            if self._filled == len(self._buffer):
                await self._make_room()
            count = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            self.size += count
            rest = rest[count:]

    async def complete(self, tags: Mapping[str, str]) -> None:
        """Create the object with its tags.

        A multipart object gets its tags after CompleteMultipartUpload, because some stores drop the
        tags given to CreateMultipartUpload. Its id is not sent to the client before that.
        """
        if self._upload_id is None:
            await self._create(
                self._storage.put(self.bundle_id, self._buffer[: self._filled], tags)
            )
        else:
            await self._finish_part()
            self._send_part(self._upload_id)
            await self._finish_part()
            await self._create(
                self._storage.complete_upload(self.bundle_id, self._upload_id, self._etags)
            )
            await self._create(self._storage.put_tags(self.bundle_id, tags))
        self._release()

    async def roll_back(self) -> Cleanup | None:
        """Release the memory; return what removes the upload from S3, or `None` if not needed."""
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
        return partial(_remove, self._storage, self.bundle_id, multipart=self._multipart)

    def _release(self) -> None:
        self._buffer = memoryview(b"")
        for allocation in self._allocations:
            allocation.release()

    async def _make_room(self) -> None:
        """Replace the full buffer by a larger one, or send it and continue in an empty one."""
        if len(self._buffer) < self._part_size:
            await self._move_to_part()
            return
        if self._upload_id is None:
            self._multipart = True
            self._upload_id = await self._create(self._storage.create_upload(self.bundle_id))
        await self._finish_part()
        self._send_part(self._upload_id)
        self._buffer = memoryview(b"")
        single = len(self._allocations) == 1
        if single and (second := self._memory.parts.try_acquire(self._part_size)):
            self._fill(second)
            return
        if single:
            # This upload has only one buffer, which has to be sent before it can be filled again.
            await self._finish_part()
        self._fill(self._allocations.pop(0))

    async def _move_to_part(self) -> None:
        """Move from the slot to a part. While it waits, the upload holds no part of its own."""
        contents, self._buffer = self._buffer, memoryview(b"")
        [slot], self._allocations = self._allocations, []
        with slot:
            await self._acquire_part(self._part_size)
            self._buffer[: len(contents)] = contents
            del contents  # Without this view, the pages of the slot can be cached.

    async def _acquire_part(self, size: int) -> None:
        self._fill(await self._memory.parts.acquire(size))

    def _fill(self, allocation: Allocation) -> None:
        """Write to this allocation next.

        Its buffer gets new pages if a connection to S3 still has a view of the old ones.
        """
        self._allocations.append(allocation)
        self._buffer = allocation.buffer()

    def _send_part(self, upload_id: str) -> None:
        self._part_upload = asyncio.create_task(
            self._storage.upload_part(
                self.bundle_id, upload_id, len(self._etags) + 1, self._buffer[: self._filled]
            ),
            context=timing.detached(),
        )
        self._filled = 0

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
    finally:
        await storage.delete(bundle_id)
