"""One bundle on its way into S3: a PutObject, or parts of which one is sent while one fills."""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

from service import trace
from service.budget import SLOT, Lease, Memory
from service.leftovers import Removal

_T = TypeVar("_T")


class Sink(Protocol):
    """The part of S3 that an upload needs. Every call may raise `StorageUnavailable`."""

    async def put(self, bundle_id: UUID, body: memoryview, tags: Mapping[str, str]) -> None: ...
    async def create_upload(self, bundle_id: UUID) -> str: ...
    async def upload_part(
        self, bundle_id: UUID, upload: str, number: int, body: memoryview
    ) -> str: ...
    async def complete_upload(self, bundle_id: UUID, upload: str, etags: list[str]) -> None: ...
    async def abort_uploads(self, bundle_id: UUID) -> None: ...
    async def put_tags(self, bundle_id: UUID, tags: Mapping[str, str]) -> None: ...
    async def delete(self, bundle_id: UUID) -> None: ...


class Upload:
    """`begin`, `write` and `finish`, or `undo` after anything else.

    It holds one part buffer (of `part_size` bytes), and a second one if that is free at once.
    """

    def __init__(self, sink: Sink, memory: Memory, *, part_size: int) -> None:
        self.bundle_id = uuid4()
        self.size = 0
        self._sink = sink
        self._memory = memory
        self._part_size = part_size
        self._leases: list[Lease] = []
        self._buffer = memoryview(b"")
        self._filled = 0
        self._multipart = False
        self._upload: str | None = None
        self._etags: list[str] = []
        self._sending: asyncio.Task[str] | None = None
        self._making: asyncio.Future[Any] | None = None

    async def begin(self, length: int | None) -> None:
        """Wait for memory, before anything is read: for a part, or as much as is declared.

        What declares nothing begins in a small slot, as most of it is small. Raises `Overloaded`.
        """
        if length is None:
            self._hold(await self._memory.slots.take(SLOT))
        else:
            await self._take_part(min(length, self._part_size))

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes of the bundle; a full part is sent off only when more comes."""
        rest = memoryview(chunk)
        while rest:
            if self._filled == len(self._buffer):
                await self._make_room()
            taken = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            self.size += taken
            rest = rest[taken:]

    async def finish(self, tags: Mapping[str, str]) -> None:
        """Make the object, whole and tagged.

        A multipart object gets its tags after it is complete, as some stores drop those that are
        given when it is created; its id is told to nobody before.
        """
        if self._upload is None:
            await self._make(self._sink.put(self.bundle_id, self._buffer[: self._filled], tags))
        else:
            await self._part_sent()
            self._send_part(self._upload)
            await self._part_sent()
            await self._make(self._sink.complete_upload(self.bundle_id, self._upload, self._etags))
            await self._make(self._sink.put_tags(self.bundle_id, tags))
        self._release()

    async def undo(self) -> Removal | None:
        """Give back the memory; what removes from S3 all that had been begun there, if anything."""
        if self._sending is not None:
            self._sending.cancel()
        await asyncio.gather(
            *(task for task in (self._sending, self._making) if task is not None),
            return_exceptions=True,
        )
        begun = self._making is not None
        # They hold what they failed with, and that holds their buffers.
        self._sending = self._making = None
        self._release()
        if not begun:
            return None
        return partial(_remove, self._sink, self.bundle_id, multipart=self._multipart)

    def _release(self) -> None:
        self._buffer = memoryview(b"")
        for lease in self._leases:
            lease.release()

    async def _make_room(self) -> None:
        """Have a buffer with room in it: a larger one, or an empty one."""
        if len(self._buffer) < self._part_size:
            await self._outgrow_slot()
            return
        if self._upload is None:
            self._multipart = True
            self._upload = await self._make(self._sink.create_upload(self.bundle_id))
        await self._part_sent()
        self._send_part(self._upload)
        self._buffer = memoryview(b"")
        one = len(self._leases) == 1
        if one and (lease := self._memory.parts.take_now(self._part_size)):
            self._hold(lease)
            return
        if one:
            # The one buffer there is must be sent before it can be filled again.
            await self._part_sent()
        self._hold(self._leases.pop(0))

    async def _outgrow_slot(self) -> None:
        """Go on in a part; waiting for it, this upload holds no part that others wait for."""
        begun, self._buffer = self._buffer, memoryview(b"")
        [slot], self._leases = self._leases, []
        with slot:
            await self._take_part(self._part_size)
            self._buffer[: len(begun)] = begun
            del begun  # The slot's pages can be kept then.

    async def _take_part(self, size: int) -> None:
        self._hold(await self._memory.parts.take(size))

    def _hold(self, lease: Lease) -> None:
        """Fill this one next; what a connection goes on sending of it, S3 has from another one."""
        self._leases.append(lease)
        self._buffer = lease.buffer()

    def _send_part(self, upload: str) -> None:
        self._sending = asyncio.create_task(
            self._sink.upload_part(
                self.bundle_id, upload, len(self._etags) + 1, self._buffer[: self._filled]
            ),
            context=trace.apart(),
        )
        self._filled = 0

    async def _part_sent(self) -> None:
        if self._sending is not None:
            with trace.waiting("s3"):
                self._etags.append(await self._sending)
            self._sending = None

    async def _make(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await a call that makes something in S3, but do not let a cancellation cut it short.

        Cut short, it might take effect after `undo`, which therefore waits for it.
        """
        self._making = making = asyncio.ensure_future(call)
        return await asyncio.shield(making)


async def _remove(sink: Sink, bundle_id: UUID, *, multipart: bool) -> None:
    """Abort first: a Complete that is still on its way makes an object, or fails."""
    try:
        if multipart:
            await sink.abort_uploads(bundle_id)
    finally:
        await sink.delete(bundle_id)
