"""A `BundleService` with its storage, memory and bucket, and the bundles that tests upload."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from service.bundles.memory import Memory
from service.bundles.service import BundleService
from service.bundles.upload import Body
from service.errors import StorageUnavailable
from service.s3.bodies import ObjectBody
from service.s3.storage import S3Storage
from service.telemetry.metrics import Metrics
from tests.support.stores.buckets import multipart_upload_keys, stored_bundles

PART = 5 << 20
"""The smallest part size that S3 accepts."""

CHUNK = 64 * 1024

UPLOAD_LIMIT = 64 << 20
"""Bytes that one caller may upload in an hour."""


class ControlledStorage(S3Storage):
    """S3 storage that can pause and fail.

    `paused_calls` return only after `resume` is set, and `failing_calls` raise
    `StorageUnavailable`. Calls that create objects have taken effect in S3 before that, calls that
    change or delete them have not. `calls` lists all calls, and `sent` counts the bytes of all
    bodies that were passed to aiohttp.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.paused, self.resume = asyncio.Event(), asyncio.Event()
        self.paused_calls, self.failing_calls = set[str](), set[str]()
        self.calls: list[str] = []
        self.sent = 0

    async def _pause(self, call: str) -> None:
        self.calls.append(call)
        if call in self.paused_calls:
            self.paused.set()
            await self.resume.wait()
        if call in self.failing_calls:
            raise StorageUnavailable

    async def require_records(self) -> None:
        """Send no requests for this: the stores of the tests keep records."""

    async def put(self, bundle_id: UUID, body: Body, *arguments: Any) -> None:
        counted_body: Any = _CountedBody(body, self)
        await super().put(bundle_id, counted_body, *arguments)
        await self._pause("put")

    async def upload_part(self, bundle_id: UUID, upload_id: str, number: int, body: Body) -> str:
        counted_body: Any = _CountedBody(body, self)
        etag = await super().upload_part(bundle_id, upload_id, number, counted_body)
        await self._pause("upload_part")
        return etag

    async def _complete(self, *arguments: Any) -> None:
        await super()._complete(*arguments)
        await self._pause("complete_upload")

    async def put_tags(self, *arguments: Any, **options: Any) -> None:
        await self._pause("put_tags")
        await super().put_tags(*arguments, **options)

    async def open(self, *arguments: Any, **options: Any) -> ObjectBody:
        self.calls.append("open")
        return await super().open(*arguments, **options)

    async def delete(self, *arguments: Any) -> None:
        await self._pause("delete")
        await super().delete(*arguments)


class _CountedBody:
    """Counts the bytes that are taken from a body. Everything else is the body's own."""

    def __init__(self, body: Body, storage: ControlledStorage) -> None:
        self._body = body
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def __aiter__(self) -> AsyncIterator[bytes | bytearray]:
        async for chunk in self._body:
            self._storage.sent += len(chunk)
            yield chunk


@dataclass(frozen=True)
class Setup:
    """A service on an empty bucket, and all that a test inspects."""

    bundles: BundleService
    storage: ControlledStorage
    memory: Memory
    metrics: Metrics
    s3: Any
    bucket: str

    def objects(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Return the body and the tags of every object, by the bundle's id."""
        return stored_bundles(self.s3, self.bucket)

    def is_empty(self) -> bool:
        """Return whether the bucket has neither objects nor multipart uploads."""
        return not self.objects() and not multipart_upload_keys(self.s3, self.bucket)

    def metric(self, sample: str) -> float:
        """Return the value of a metric, given with its labels; 0 if it has none."""
        exposition = self.metrics.exposition().decode()
        match = re.search(rf"^{re.escape(sample)} (\S+)$", exposition, re.MULTILINE)
        return float(match[1]) if match else 0


Test = Callable[[Setup], Coroutine[Any, Any, None]]


class Run(Protocol):
    """Run a test with memory for `parts` parts. Its clock shows 0 unless it has its own."""

    def __call__(
        self,
        test: Test,
        *,
        parts: int = 2,
        require_hmac: bool = True,
        clock: Callable[[], float] = ...,
        endpoint_url: str | None = None,
    ) -> None: ...


async def split(bundle: bytes) -> AsyncIterator[bytes]:
    """Yield a bundle in chunks, as they arrive from a client."""
    for start in range(0, len(bundle), CHUNK):
        yield bundle[start : start + CHUNK]


async def stall(bundle: bytes, stalled: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield a bundle, set `stalled`, and never end."""
    async for chunk in split(bundle):
        yield chunk
    stalled.set()
    await asyncio.Event().wait()
