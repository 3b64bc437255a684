"""The use cases: a bundle is deposited, and withdrawn by who can prove its HMAC.

A deposit streams into S3 one part at a time: a bundle of up to one part is one PutObject, a larger
one a multipart upload whose next part is received while the last one is sent. A withdrawal decides
everything before it hands out the first byte. This module owns the `Storage` it needs; it knows
neither HTTP nor botocore.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

from service.errors import (
    BundleTooLarge,
    EmptyBundle,
    InvalidHmac,
    MissingHeader,
    NotFound,
    StorageUnavailable,
)
from service.proof import Proof, Verification, same
from service.record import BundleRecord, expiry

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

CLEANUP_TIMEOUT = 5.0
"""Seconds that `Bundles.close` waits for clean-ups; what is left then, the lifecycle sweeps."""


class Content(Protocol):
    """A bundle's bytes: to be iterated once, and closed by whoever asked for them."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Stat:
    """What S3 knows of an object: `size` in bytes, `etag` in quotes, `modified_at` in Unix time."""

    size: int
    etag: str
    modified_at: float


class StoredObject(Content, Protocol):
    """An object opened for reading; iterating fails with `StorageUnavailable` if S3 breaks off."""

    @property
    def stat(self) -> Stat: ...


class Storage(Protocol):
    """The part of S3 that bundles need. Every call may raise `StorageUnavailable`."""

    async def put(self, bundle_id: UUID, body: memoryview, tags: Mapping[str, str]) -> None: ...
    async def create_upload(self, bundle_id: UUID) -> str: ...
    async def upload_part(
        self, bundle_id: UUID, upload: str, number: int, body: memoryview
    ) -> str: ...
    async def complete_upload(self, bundle_id: UUID, upload: str, etags: list[str]) -> None: ...
    async def abort_uploads(self, bundle_id: UUID) -> None: ...
    async def put_tags(self, bundle_id: UUID, tags: Mapping[str, str]) -> None: ...
    async def get_tags(self, bundle_id: UUID) -> Mapping[str, str]:
        """`NotFound` if there is no object."""

    async def head(self, bundle_id: UUID) -> Stat:
        """`NotFound` if there is no object."""

    async def open(self, bundle_id: UUID, *, etag: str | None = None) -> StoredObject:
        """`NotFound` if there is no object, or none with this ETag."""

    async def delete(self, bundle_id: UUID) -> None: ...


@dataclass(frozen=True, slots=True)
class Released:
    """A bundle whose proof holds. `content` is `None` where only its headers were asked for."""

    record: BundleRecord
    stat: Stat
    content: Content | None


class Bundles:
    """All that can be done with bundles, on one `Storage`.

    `part_size` and `limit` (the largest bundle) are bytes, `retention` seconds; `require_hmac`
    refuses those who present no proof even where a bundle was uploaded without an HMAC.
    """

    def __init__(  # noqa: PLR0913 - the settings of section 5, each by its name
        self,
        storage: Storage,
        *,
        part_size: int,
        limit: int,
        retention: int,
        require_hmac: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._part_size = part_size
        self._limit = limit
        self._retention = retention
        self._clock = clock
        self._cleanups: set[asyncio.Task[None]] = set()
        self.require_hmac = require_hmac

    async def close(self) -> None:
        """Wait for running clean-ups, for at most `CLEANUP_TIMEOUT`."""
        if self._cleanups:
            await asyncio.wait(self._cleanups, timeout=CLEANUP_TIMEOUT)

    async def deposit(
        self,
        chunks: AsyncIterator[bytes],
        *,
        hmac: str | None = None,
        length: int | None = None,
        envelope: int = 0,
    ) -> tuple[UUID, BundleRecord]:
        """Store a bundle; when this returns, every replica can read it.

        `length` is how many bytes were declared, up to `envelope` of them around the bundle. Raises
        `BundleTooLarge`, `EmptyBundle`, `StorageUnavailable`, and whatever `chunks` raises; after
        any of these, or a cancellation, what had reached S3 is removed in the background.
        """
        if length is not None and length - envelope > self._limit:
            raise BundleTooLarge(self._limit)
        started, sha256 = self._clock(), hashlib.sha256()
        first_part = self._part_size if length is None else min(length, self._part_size)
        upload = _Upload(self._storage, first_part, self._part_size)
        try:
            async for chunk in chunks:
                if upload.size + len(chunk) > self._limit:
                    raise BundleTooLarge(self._limit)
                sha256.update(chunk)
                await upload.write(chunk)
            if not upload.size:
                raise EmptyBundle
            ends = expiry(
                started=started, now=self._clock(), life=self._retention, retention=self._retention
            )
            record = BundleRecord(sha256.hexdigest(), ends, hmac)
            await upload.finish(record.to_tags())
        except BaseException:
            self._in_background(upload.undo())
            raise
        return upload.bundle_id, record

    async def withdraw(
        self, bundle_id: UUID, proof: Proof | None, *, body: bool = True
    ) -> Released:
        """Release a bundle, or raise: the only place where that is decided.

        Where `body` is wanted, the caller closes `content`. Raises `NotFound`, `MissingHeader`,
        `InvalidHmac`, `StorageUnavailable`.
        """
        record = BundleRecord.from_tags(await self._storage.get_tags(bundle_id))
        if record is None or record.expired(self._clock()):
            raise NotFound
        if proof is None:
            if self.require_hmac or record.hmac is not None:
                raise MissingHeader("X-HMAC")
            return await self._open(bundle_id, record, body=body)
        if record.hmac is not None and not same(record.hmac, proof.hmac):
            raise InvalidHmac
        return await self._verified(bundle_id, record, proof, body=body)

    async def _verified(
        self, bundle_id: UUID, record: BundleRecord, proof: Proof, *, body: bool
    ) -> Released:
        """Read the whole bundle to check its proof; up to one part of it is kept and released."""
        verification, held = Verification(proof.key), list[bytes]()
        async with aclosing(await self._storage.open(bundle_id)) as stored:
            stat = stored.stat
            keep = body and stat.size <= self._part_size
            async for chunk in stored:
                verification.update(chunk)
                if keep:
                    held.append(chunk)
        if not verification.holds(proof.hmac):
            raise InvalidHmac
        if body and not keep:
            return await self._open(bundle_id, record, body=True, etag=stat.etag)
        return Released(record, stat, _Held(held) if body else None)

    async def _open(
        self, bundle_id: UUID, record: BundleRecord, *, body: bool, etag: str | None = None
    ) -> Released:
        if not body:
            return Released(record, await self._storage.head(bundle_id), None)
        stored = await self._storage.open(bundle_id, etag=etag)
        return Released(record, stored.stat, stored)

    def _in_background(self, cleanup: Coroutine[Any, Any, None]) -> None:
        """Run to its end what must not be cancelled with the request it belongs to."""
        task = asyncio.create_task(cleanup)
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)


class _Held:
    """A verified bundle that is in memory already."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        self._chunks.clear()


class _Upload:
    """One bundle on its way into S3, in at most two part buffers: one fills while one is sent."""

    def __init__(self, storage: Storage, first_part: int, part_size: int) -> None:
        self.bundle_id = uuid4()
        self.size = 0
        self._storage = storage
        self._part_size = part_size
        self._buffer = memoryview(bytearray(first_part))
        self._spare: memoryview | None = None
        self._filled = 0
        self._upload: str | None = None
        self._etags: list[str] = []
        self._sending: asyncio.Task[str] | None = None
        self._making: asyncio.Future[Any] | None = None

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes of the bundle; a full part is sent off only when more comes."""
        rest = memoryview(chunk)
        while rest:
            if self._filled == len(self._buffer):
                await self._send_part()
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
            await self._make(self._storage.put(self.bundle_id, self._buffer[: self._filled], tags))
            return
        await self._send_part()
        await self._part_sent()
        await self._make(self._storage.complete_upload(self.bundle_id, self._upload, self._etags))
        await self._make(self._storage.put_tags(self.bundle_id, tags))

    async def undo(self) -> None:
        """Leave nothing in S3, whatever of it had been begun."""
        if self._sending is not None:
            self._sending.cancel()
        await asyncio.gather(
            *(task for task in (self._sending, self._making) if task is not None),
            return_exceptions=True,
        )
        if self._making is None:
            return
        try:
            await self._storage.abort_uploads(self.bundle_id)
            await self._storage.delete(self.bundle_id)
        except StorageUnavailable:
            _log.warning("an upload that failed is left to the bucket's lifecycle")

    async def _send_part(self) -> None:
        if self._upload is None:
            self._upload = await self._make(self._storage.create_upload(self.bundle_id))
        await self._part_sent()
        body = self._buffer[: self._filled]
        self._sending = asyncio.create_task(
            self._storage.upload_part(self.bundle_id, self._upload, len(self._etags) + 1, body)
        )
        self._buffer, self._spare = (
            self._spare or memoryview(bytearray(self._part_size)),
            self._buffer,
        )
        self._filled = 0

    async def _part_sent(self) -> None:
        if self._sending is not None:
            self._etags.append(await self._sending)
            self._sending = None

    async def _make(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await a call that makes something in S3, but do not let a cancellation cut it short.

        Cut short, it might take effect after `undo`, which therefore waits for it.
        """
        self._making = making = asyncio.ensure_future(call)
        return await asyncio.shield(making)
