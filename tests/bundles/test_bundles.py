"""What cannot be seen from outside: how a deposit overlaps its parts, and what cancels it."""

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


class Held(S3Storage):
    """Its writes reach S3, but are answered only when `answer` is set."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reached = asyncio.Event()
        self.answer = asyncio.Event()
        self.holds = {"put", "upload_part"}
        self.fails = set[str]()

    async def _held(self, call: str) -> None:
        if call in self.holds:
            self.reached.set()
            await self.answer.wait()
        if call in self.fails:
            raise StorageUnavailable

    async def put(self, *arguments: Any) -> None:
        await super().put(*arguments)
        await self._held("put")

    async def upload_part(self, *arguments: Any) -> str:
        etag = await super().upload_part(*arguments)
        await self._held("upload_part")
        return etag

    async def complete_upload(self, *arguments: Any) -> None:
        await super().complete_upload(*arguments)
        await self._held("complete_upload")

    async def delete(self, *arguments: Any) -> None:
        await self._held("delete")
        await super().delete(*arguments)


class Lingering(Held):
    """Its parts are on their way a second time when S3 has them, on a connection that stalls."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.holds = set()
        self.unsent: list[tuple[memoryview, bytes]] = []

    async def upload_part(self, *arguments: Any) -> str:
        unsent = arguments[-1][-1000:]
        self.unsent.append((unsent, bytes(unsent)))
        return await super().upload_part(*arguments)


def run(
    store: Store,
    service: Service,
    test: Callable[[BundleService, Held], Coroutine[Any, Any, None]],
    *,
    storage_class: type[Held] = Held,
    parts: int = 2,
) -> None:
    """Run a test of a `BundleService` alone, with so many small parts, in the service's bucket."""
    service.clear()

    async def main() -> None:
        before = asyncio.all_tasks()
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
            assert asyncio.all_tasks() == before
            assert memory.parts.in_use == memory.slots.in_use == 0

    with aws_environment(store):
        asyncio.run(asyncio.wait_for(main(), 20))


async def pieces(count: int, storage: Held | None = None) -> AsyncIterator[bytes]:
    """So many MiB; the last one comes only when S3 has a part that it has not yet answered."""
    for number in range(count):
        if storage and number == count - 1:
            await storage.reached.wait()
            assert not storage.answer.is_set()
            storage.answer.set()
        yield bytes(1 << 20)


def test_a_part_is_sent_while_the_next_one_arrives(store: Store, service: Service) -> None:
    """Were it not, the whole of the second part would wait for the first one's answer, for ever."""

    async def test(bundles: BundleService, storage: Held) -> None:
        await bundles.upload(pieces(10, storage), UploadClaims())

    run(store, service, test)


async def cancel_unanswered(deposit: asyncio.Task[Any], storage: Held) -> None:
    """Cancel it while S3 has not answered; S3 answers afterwards."""
    deposit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deposit
    storage.answer.set()


@pytest.mark.parametrize("mebibytes", [1, 6, 20])
def test_a_cancelled_deposit_leaves_nothing(store: Store, service: Service, mebibytes: int) -> None:
    """Not even what S3 had done already when the deposit was cancelled, but not yet answered."""

    async def test(bundles: BundleService, storage: Held) -> None:
        deposit = asyncio.create_task(bundles.upload(pieces(mebibytes), UploadClaims()))
        await storage.reached.wait()
        await cancel_unanswered(deposit, storage)

    run(store, service, test)
    assert not service.objects()
    assert not service.multipart_uploads()


def test_a_deposit_cancelled_in_its_last_call_leaves_nothing(
    store: Store, service: Service
) -> None:
    """When the object is whole already, and only the answer to CompleteMultipartUpload is due."""

    async def test(bundles: BundleService, storage: Held) -> None:
        storage.holds = {"complete_upload"}
        deposit = asyncio.create_task(bundles.upload(pieces(11), UploadClaims()))
        await storage.reached.wait()
        assert service.objects()
        await cancel_unanswered(deposit, storage)

    run(store, service, test)
    assert not service.objects()


@pytest.mark.parametrize("mebibytes", [6, 20])
def test_closing_waits_for_deposits_that_are_being_cancelled(
    store: Store, service: Service, mebibytes: int
) -> None:
    """As at the end of a drained server, which cancels what still runs and closes at once."""

    async def test(bundles: BundleService, storage: Held) -> None:
        deposit = asyncio.create_task(bundles.upload(pieces(mebibytes), UploadClaims()))
        await storage.reached.wait()
        deposit.cancel()
        storage.answer.set()
        await bundles.close()
        assert deposit.cancelled()

    run(store, service, test)
    assert not service.objects()
    assert not service.multipart_uploads()


@pytest.mark.parametrize("mebibytes", [1, 6])
def test_what_waits_for_s3_to_come_back_holds_no_memory(
    store: Store, service: Service, mebibytes: int
) -> None:
    """Four such deposits, one after the other, would not fit into it."""

    async def test(bundles: BundleService, storage: Held) -> None:
        storage.holds = set()
        storage.fails = {"put", "complete_upload", "delete"}
        for _ in range(4):
            with pytest.raises(StorageUnavailable):
                await bundles.upload(pieces(mebibytes), UploadClaims())
        assert len(service.objects()) == 4
        storage.fails = set()

    run(store, service, test)
    assert not service.objects()


def test_closing_waits_for_s3_to_come_back_but_not_for_ever(
    store: Store,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.bundles.background.CLOSE_TIMEOUT", 0.2)

    async def test(bundles: BundleService, storage: Held) -> None:
        storage.holds = set()
        storage.fails = {"put", "delete"}
        with pytest.raises(StorageUnavailable):
            await bundles.upload(pieces(1), UploadClaims())

    run(store, service, test)
    assert "to the bucket's lifecycle" in caplog.text
    service.clear()


@pytest.fixture
def new_pages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all memory for bundles that is new to the process."""
    sizes = list[int]()

    class Pages(mmap.mmap):
        def __new__(cls, fd: int, length: int, **options: Any) -> Self:
            sizes.append(length)
            return super().__new__(cls, fd, length, **options)

    monkeypatch.setattr(mmap, "mmap", Pages)
    return sizes


async def cut(bundle: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(bundle), 100_000):
        yield bundle[at : at + 100_000]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("length", [True, False])
def test_bundles_in_the_same_memory_keep_their_own_bytes(
    store: Store, service: Service, new_pages: list[int], parts: int, *, length: bool
) -> None:
    """Of known length or not, and whether or not there is memory for two parts at once."""
    bundles = [random_bytes(seed, 3 * PART + 1000) for seed in range(4)]

    async def test(served: BundleService, storage: Held) -> None:
        storage.holds = set()
        for bundle in bundles:
            bundle_id, _ = await served.upload(
                cut(bundle), UploadClaims(), length=len(bundle) if length else None
            )
            where = {"Bucket": service.bucket, "Key": f"{service.prefix}{bundle_id}"}
            stored = await asyncio.to_thread(service.s3.get_object, **where)
            assert stored["Body"].read() == bundle

    run(store, service, test, parts=parts)
    assert sorted(new_pages) == [SLOT_SIZE] * (not length) + [PART] * min(parts, 2)


def test_a_part_that_is_still_being_sent_is_not_written_over(
    store: Store, service: Service, new_pages: list[int]
) -> None:
    """Its second sending, whose answer nobody waits for, must not make a part of other bytes."""
    bundle = random_bytes(5, 4 * PART)

    async def test(served: BundleService, storage: Held) -> None:
        assert isinstance(storage, Lingering)
        await served.upload(cut(bundle), UploadClaims(), length=len(bundle))
        assert [sent for _, sent in storage.unsent] == [
            bundle[end - 1000 : end] for end in range(PART, len(bundle) + 1, PART)
        ]
        assert all(bytes(unsent) == sent for unsent, sent in storage.unsent)

    run(store, service, test, storage_class=Lingering)
    assert new_pages == [PART] * 4
