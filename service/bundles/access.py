"""Access to stored bundles: looks them up, decides who may read or delete them, and reads them.

A proof is checked against the record alone if that is possible. Otherwise the whole bundle is read.
`service` calls this before the first byte of a bundle is sent, and before a bundle is deleted.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from service.bundles.limits import ReadLimits
from service.bundles.memory import Memory
from service.bundles.proof import HmacVerifier, Proof, compute_receipt, equal_digests
from service.bundles.ranges import ObjectStat
from service.bundles.record import BundleRecord
from service.bundles.upload import UploadStorage
from service.errors import InvalidHmac, MissingHeader, NotFound
from service.telemetry import timing, tracing
from service.telemetry.metrics import Metrics

HASHED_AT_ONCE = 1 << 20
"""Bytes of a bundle in memory whose HMAC another thread computes at once."""

MAX_HASHED_HERE = 512 * 1024
"""Bytes whose HMAC is computed on the event loop. More would delay other requests.

Fewer, as with many transfers, are not worth a thread: it can wait 5 ms for the interpreter lock.
"""


class Content(Protocol):
    """The bytes of a bundle. They can be iterated once; the caller that opened them closes them."""

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]: ...
    async def aclose(self) -> None: ...


class StoredObject(Content, Protocol):
    """An object opened for reading. Iterating raises `StorageUnavailable` if S3 fails."""

    @property
    def stat(self) -> ObjectStat: ...


class Storage(UploadStorage, Protocol):
    """The part of S3 that bundles need. Every call may raise `StorageUnavailable`."""

    records_in_tags: bool
    """Whether records are kept as tags, which can be changed, or in the objects' metadata."""

    async def require_records(self) -> None:
        """Raise `StorageUnavailable` unless this store is known to keep records."""

    async def get_tags(self, bundle_id: UUID) -> Mapping[str, str]:
        """Return the object's tags. Raises `NotFound` if there is no object."""

    async def put_tags(self, bundle_id: UUID, fields: Mapping[str, str]) -> None:
        """Replace the object's tags. Raises `NotFound` if there is no object."""

    async def head(self, bundle_id: UUID) -> ObjectStat:
        """Return the object's metadata. Raises `NotFound` if there is no object."""

    async def open(
        self, bundle_id: UUID, *, etag: str | None = None, part: range | None = None
    ) -> StoredObject:
        """Open an object, or the bytes `part` of it; its `stat` always describes the whole object.

        Raises `NotFound` if there is no object, or none with this ETag.
        """


@dataclass(frozen=True, slots=True)
class Download:
    """An authorized download of one byte range or of a whole bundle.

    `part` is `None` for a whole bundle. `content` is `None` for HEAD.
    """

    record: BundleRecord
    stat: ObjectStat
    content: Content | None
    part: range | None = None


class InMemoryContent:
    """The requested part of a verified bundle that is already in memory."""

    def __init__(self, chunks: Sequence[bytes], part: range) -> None:
        self._chunks = chunks
        self._part = part

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        start = 0
        for chunk in self._chunks:
            first, last = max(self._part.start - start, 0), self._part.stop - start
            if last > 0 and first < len(chunk):
                yield memoryview(chunk)[first:last]
            start += len(chunk)

    async def aclose(self) -> None:
        self._chunks = ()


class DownloadContent:
    """Content together with the memory that it uses."""

    def __init__(self, content: Content, resources: AsyncExitStack) -> None:
        self._content = content
        self._resources = resources

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return aiter(self._content)

    async def aclose(self) -> None:
        await self._content.aclose()
        await self._resources.aclose()


class BundleAccess:
    """Reads bundles and their records, on one `Storage`; `clock` returns Unix seconds."""

    def __init__(
        self,
        storage: Storage,
        memory: Memory,
        metrics: Metrics,
        *,
        require_hmac: bool,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._memory = memory
        self._limits = ReadLimits(memory.timeout)
        self._metrics = metrics
        self._require_hmac = require_hmac
        self._clock = clock

    async def look_up(
        self, bundle_id: UUID, resources: AsyncExitStack, *, whole: bool
    ) -> tuple[BundleRecord, ObjectStat, StoredObject | None]:
        """Read a bundle's record, and at the same time open the object if the `whole` is needed.

        It is not opened if it may not be read to check a proof. Raises `NotFound` if there is no
        bundle, if it has expired, or if it is not complete.
        """
        opening: asyncio.Task[StoredObject | ObjectStat] = asyncio.create_task(
            self.open(bundle_id, resources)
            if whole and not self._limits.exceeded(bundle_id)
            else self._storage.head(bundle_id),
            context=timing.detached(),
        )
        try:
            tags = None
            if self._storage.records_in_tags:
                tags = await self._storage.get_tags(bundle_id)
                self._check_record(tags)  # If it is not a bundle, nothing waits for the object.
            with timing.measure("s3"):
                opened = await opening
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        stored = None if isinstance(opened, ObjectStat) else opened
        stat = opened if isinstance(opened, ObjectStat) else opened.stat
        record = self._check_record(stat.fields if tags is None else tags)
        if record.size not in {None, stat.size}:
            raise NotFound
        return record, stat, stored

    def _check_record(self, fields: Mapping[str, str]) -> BundleRecord:
        record = BundleRecord.from_fields(fields)
        if record is None or record.is_expired(self._clock()):
            raise NotFound
        return record

    async def open(
        self,
        bundle_id: UUID,
        resources: AsyncExitStack,
        *,
        etag: str | None = None,
        part: range | None = None,
    ) -> StoredObject:
        """Open an object, and have `resources` close it."""
        stored = await self._storage.open(bundle_id, etag=etag, part=part)
        resources.push_async_callback(stored.aclose)
        return stored

    def check_open(self, record: BundleRecord) -> None:
        """Raise `MissingHeader` if the bundle needs a proof."""
        if self._require_hmac or record.hmac is not None:
            raise MissingHeader("X-HMAC")

    def check_proof(self, bundle_id: UUID, record: BundleRecord, proof: Proof) -> bool:
        """Return whether the record alone proves that the bundle may be downloaded.

        Raises `InvalidHmac` if it proves the opposite. Otherwise the bundle has to be read.
        """
        if record.hmac is not None and not equal_digests(record.hmac, proof.hmac):
            self._count_verification("tag", valid=False)
        if record.receipt is None:
            return False
        valid = equal_digests(record.receipt, compute_receipt(proof, bundle_id))
        self._count_verification("receipt", valid=valid)
        return True

    async def verify_by_reading(
        self,
        bundle_id: UUID,
        stored: StoredObject | ObjectStat,
        proof: Proof,
        resources: AsyncExitStack,
        *,
        keep: bool,
    ) -> list[bytes] | None:
        """Read a whole bundle and check its HMAC, unless it was read too often.

        Returns the bundle if that is wanted (`keep`) and its size is free in memory now.
        """
        stat = stored if isinstance(stored, ObjectStat) else stored.stat
        with tracing.inside("verify bundle"):
            async with self._limits.read(bundle_id, stat.size):
                if isinstance(stored, ObjectStat):
                    stored = await self.open(bundle_id, resources, etag=stored.etag)
                return await self._read(stored, proof, resources, keep=keep)

    async def _read(
        self, stored: StoredObject, proof: Proof, resources: AsyncExitStack, *, keep: bool
    ) -> list[bytes] | None:
        chunks: list[bytes] | None = None
        if keep and (reservation := self._memory.reserve(stored.stat.size)):
            resources.enter_context(reservation)
            chunks = []
        verifier = HmacVerifier(proof)
        async with aclosing(stored):
            if chunks is None:
                async for chunk in stored:
                    await _hash(verifier, [chunk])
            else:
                await _read_into(chunks, stored, verifier)
        way = "one_read" if not keep else "two_reads" if chunks is None else "memory"
        self._count_verification(way, valid=verifier.matches())
        return chunks

    def _count_verification(self, way: str, *, valid: bool) -> None:
        """Count a verification. Raises `InvalidHmac` if the proof is not valid."""
        self._metrics.verifications.labels(way, "held" if valid else "refused").inc()
        if not valid:
            raise InvalidHmac


async def _read_into(chunks: list[bytes], stored: StoredObject, verifier: HmacVerifier) -> None:
    """Read an object into memory. Another thread computes the HMAC of what has arrived meanwhile.

    So a large bundle takes as long as the slower of both, and does not block the event loop.
    """
    loop = asyncio.get_running_loop()
    hashing: asyncio.Future[None] | None = None
    unhashed = start = 0
    async for chunk in stored:
        chunks.append(bytes(chunk))
        unhashed += len(chunk)
        if unhashed >= HASHED_AT_ONCE and (hashing is None or hashing.done()):
            hashing = loop.run_in_executor(None, verifier.update_all, chunks[start:])
            unhashed, start = 0, len(chunks)
    if hashing is not None:
        await hashing
    await _hash(verifier, chunks[start:])


async def _hash(verifier: HmacVerifier, chunks: Sequence[bytes | memoryview]) -> None:
    """Add chunks to an HMAC, on another thread if that takes longer than the switch."""
    if sum(map(len, chunks)) <= MAX_HASHED_HERE:
        verifier.update_all(chunks)
    else:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, verifier.update_all, chunks)
