"""Uploads through `BundleService` alone: overlapping parts, cancellation, cleanup and memory."""

import asyncio
import mmap
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Self

import pytest

from service.bundles.claims import UploadClaims
from service.bundles.memory import SLOT_SIZE, Memory
from service.bundles.service import BundleService
from service.drain import Drain
from service.errors import StorageUnavailable
from service.s3.calls import S3Calls
from service.s3.client import connect
from service.s3.storage import S3Storage
from service.telemetry.metrics import Metrics
from tests.support.clients.signing import random_bytes
from tests.support.services.thread import Service
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

PART = 5 << 20


class PausedStorage(S3Storage):
    """S3 storage that can pause and fail.

    `paused_calls` take effect in S3, but return only after `resume` is set. `failing_calls` raise
    `StorageUnavailable`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.paused = asyncio.Event()
        self.resume = asyncio.Event()
        self.paused_calls = {"put", "upload_part"}
        self.failing_calls = set[str]()

    async def _pause(self, call: str) -> None:
        if call in self.paused_calls:
            self.paused.set()
            await self.resume.wait()
        if call in self.failing_calls:
            raise StorageUnavailable

    async def put(self, *arguments: Any) -> None:
        await super().put(*arguments)
        await self._pause("put")

    async def upload_part(self, *arguments: Any) -> str:
        etag = await super().upload_part(*arguments)
        await self._pause("upload_part")
        return etag

    async def complete_upload(self, *arguments: Any) -> None:
        await super().complete_upload(*arguments)
        await self._pause("complete_upload")

    async def delete(self, *arguments: Any) -> None:
        await self._pause("delete")
        await super().delete(*arguments)


class LingeringStorage(PausedStorage):
    """Keeps a view of the end of each part, like a stalled connection that still sends the part.

    With each view, it keeps a copy of the bytes that the view had at first.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.paused_calls = set()
        self.views: list[tuple[memoryview, bytes]] = []

    async def upload_part(self, *arguments: Any) -> str:
        view = arguments[-1][-1000:]
        self.views.append((view, bytes(view)))
        return await super().upload_part(*arguments)


def run(
    store: Store,
    service: Service,
    test: Callable[[BundleService, PausedStorage], Coroutine[Any, Any, None]],
    *,
    storage_class: type[PausedStorage] = PausedStorage,
    parts: int = 2,
) -> None:
    """Run a test of a `BundleService` with memory for `parts` small parts, in an empty bucket."""
    service.delete_objects()

    async def main() -> None:
        tasks_before = asyncio.all_tasks()
        async with connect() as client:
            metrics = Metrics()
            calls = S3Calls(service.bucket, metrics)
            storage = storage_class(client, calls, bucket=service.bucket, prefix=service.prefix)
            memory = Memory(parts * PART, timeout=1)
            bundles = BundleService(
                *(storage, memory, metrics, Drain()),
                part_size=PART,
                max_size=1 << 30,
                retention=60,
                require_hmac=True,
            )
            await test(bundles, storage)
            await bundles.close()
            assert asyncio.all_tasks() == tasks_before
            assert memory.parts.in_use == memory.slots.in_use == 0

    with aws_environment(store):
        asyncio.run(asyncio.wait_for(main(), 20))


async def chunks(count: int, storage: PausedStorage | None = None) -> AsyncIterator[bytes]:
    """Yield `count` chunks of 1 MiB.

    With a `storage`, the last chunk comes after a part has reached S3 and before its call returns.
    """
    for number in range(count):
        if storage and number == count - 1:
            await storage.paused.wait()
            assert not storage.resume.is_set()
            storage.resume.set()
        yield bytes(1 << 20)


def test_part_is_sent_while_the_next_part_arrives(store: Store, service: Service) -> None:
    """If the parts did not overlap, the upload would wait for the first response forever."""

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        await bundles.upload(chunks(10, storage), UploadClaims())

    run(store, service, test)


async def cancel_before_response(upload: asyncio.Task[Any], storage: PausedStorage) -> None:
    """Cancel an upload while S3 has not responded; S3 responds afterwards."""
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    storage.resume.set()


@pytest.mark.parametrize("mebibytes", [1, 6, 20])
def test_cancelled_upload_leaves_nothing_in_s3(
    store: Store, service: Service, mebibytes: int
) -> None:
    """Calls that took effect in S3 are undone, even if their response had not arrived yet."""

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        upload = asyncio.create_task(bundles.upload(chunks(mebibytes), UploadClaims()))
        await storage.paused.wait()
        await cancel_before_response(upload, storage)

    run(store, service, test)
    assert not service.objects()
    assert not service.multipart_uploads()


def test_upload_cancelled_while_s3_completes_it_leaves_nothing_in_s3(
    store: Store, service: Service
) -> None:
    """The object exists by then. Only the response to CompleteMultipartUpload is missing."""

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        storage.paused_calls = {"complete_upload"}
        upload = asyncio.create_task(bundles.upload(chunks(11), UploadClaims()))
        await storage.paused.wait()
        assert service.objects()
        await cancel_before_response(upload, storage)

    run(store, service, test)
    assert not service.objects()


@pytest.mark.parametrize("mebibytes", [6, 20])
def test_close_waits_for_the_cleanup_of_cancelled_uploads(
    store: Store, service: Service, mebibytes: int
) -> None:
    """At the end of a graceful shutdown, the server cancels running uploads and closes at once."""

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        upload = asyncio.create_task(bundles.upload(chunks(mebibytes), UploadClaims()))
        await storage.paused.wait()
        upload.cancel()
        storage.resume.set()
        await bundles.close()
        assert upload.cancelled()

    run(store, service, test)
    assert not service.objects()
    assert not service.multipart_uploads()


@pytest.mark.parametrize("mebibytes", [1, 6])
def test_failed_uploads_hold_no_memory_while_their_cleanup_waits_for_s3(
    store: Store, service: Service, mebibytes: int
) -> None:
    """The memory is too small for four such uploads at once."""

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        storage.paused_calls = set()
        storage.failing_calls = {"put", "complete_upload", "delete"}
        for _ in range(4):
            with pytest.raises(StorageUnavailable):
                await bundles.upload(chunks(mebibytes), UploadClaims())
        assert len(service.objects()) == 4
        storage.failing_calls = set()

    run(store, service, test)
    assert not service.objects()


def test_close_waits_for_the_cleanup_only_for_its_timeout(
    store: Store,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.bundles.background.CLOSE_TIMEOUT", 0.2)

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        storage.paused_calls = set()
        storage.failing_calls = {"put", "delete"}
        with pytest.raises(StorageUnavailable):
            await bundles.upload(chunks(1), UploadClaims())

    run(store, service, test)
    assert "to the bucket's lifecycle" in caplog.text
    service.delete_objects()


@pytest.fixture
def allocated_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all buffers for bundles that the process newly allocates."""
    sizes = list[int]()

    class RecordingMmap(mmap.mmap):
        def __new__(cls, fd: int, length: int, **options: Any) -> Self:
            sizes.append(length)
            return super().__new__(cls, fd, length, **options)

    monkeypatch.setattr(mmap, "mmap", RecordingMmap)
    return sizes


async def split(bundle: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(bundle), 100_000):
        yield bundle[start : start + 100_000]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("length_known", [True, False], ids=["known length", "unknown length"])
def test_bundles_in_reused_memory_keep_their_own_bytes(
    store: Store, service: Service, allocated_sizes: list[int], parts: int, *, length_known: bool
) -> None:
    """The memory holds one part, or two or more at once."""
    contents = [random_bytes(seed, 3 * PART + 1000) for seed in range(4)]

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        storage.paused_calls = set()
        for content in contents:
            bundle_id, _ = await bundles.upload(
                split(content), UploadClaims(), length=len(content) if length_known else None
            )
            location = {"Bucket": service.bucket, "Key": f"{service.prefix}{bundle_id}"}
            stored = await asyncio.to_thread(service.s3.get_object, **location)
            assert stored["Body"].read() == content

    run(store, service, test, parts=parts)
    assert sorted(allocated_sizes) == [SLOT_SIZE] * (not length_known) + [PART] * min(parts, 2)


def test_part_that_is_still_being_sent_is_not_overwritten(
    store: Store, service: Service, allocated_sizes: list[int]
) -> None:
    """S3 may still receive a part a second time. The second copy must hold the same bytes."""
    bundle = random_bytes(5, 4 * PART)

    async def test(bundles: BundleService, storage: PausedStorage) -> None:
        assert isinstance(storage, LingeringStorage)
        await bundles.upload(split(bundle), UploadClaims(), length=len(bundle))
        assert [sent for _, sent in storage.views] == [
            bundle[end - 1000 : end] for end in range(PART, len(bundle) + 1, PART)
        ]
        assert all(bytes(view) == sent for view, sent in storage.views)

    run(store, service, test, storage_class=LingeringStorage)
    assert allocated_sizes == [PART] * 4
