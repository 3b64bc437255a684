"""Uploads of unknown length: one PutObject, or a multipart upload with overlapping parts."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.bundles.proof import UploadClaims
from service.errors import DigestMismatch, StorageUnavailable
from tests.bundles.transfers.service_setup import (
    CHUNK,
    PART,
    ControlledStorage,
    Run,
    Setup,
    split,
    stall,
)
from tests.support.clients.signing import random_bytes, sign
from tests.support.proxy import Fault, Proxy, ResetRequest, Respond

MIB = 1 << 20
KEY = "the key of a buffered upload"


@pytest.mark.parametrize(
    ("size", "calls"),
    [
        (1, ["put"]),
        (PART, ["put"]),
        (PART + 1, ["upload_part", "upload_part", "complete_upload", "put_tags"]),
        (2 * PART, ["upload_part", "upload_part", "complete_upload", "put_tags"]),
    ],
)
@pytest.mark.parametrize("chunk", [CHUNK, 100_000])
def test_bundle_is_stored_with_its_record(
    run: Run, size: int, calls: list[str], chunk: int
) -> None:
    """The record has the `size` if it was known before the first byte was stored."""
    bundle = random_bytes(3, size)
    hmac = sign(KEY, bundle)["X-HMAC"]

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, chunk):
            yield bundle[start : start + chunk]

    async def test(setup: Setup) -> None:
        bundle_id, record = await setup.bundles.upload(chunks(), UploadClaims(hmac))
        tags = {"expires-at": "60", "hmac-sha256": hmac}
        assert record.to_fields() == tags
        if calls == ["put"]:
            tags["size"] = str(size)
        assert setup.objects() == {str(bundle_id): (bundle, tags)}
        assert setup.storage.calls == calls

    run(test)


def test_lifetime_counts_from_the_start_of_the_request(run: Run) -> None:
    """It may have waited for its authorization since then."""

    async def test(setup: Setup) -> None:
        now = setup.bundles.now()
        _, record = await setup.bundles.upload(split(b"x"), UploadClaims(), started=now - 50)
        assert record.expires_at == now - 50 + setup.bundles.retention

    run(test)


async def chunks_until_resume(mebibytes: int, storage: ControlledStorage) -> AsyncIterator[bytes]:
    """Yield a bundle whose last chunk comes when a part has reached S3, but not its response."""
    async for chunk in split(bytes(mebibytes * MIB)):
        yield chunk
    await storage.paused.wait()
    assert not storage.resume.is_set()
    storage.resume.set()
    yield b"the end"


def test_part_is_sent_while_the_next_part_arrives(run: Run) -> None:
    """If the parts did not overlap, the upload would wait for the first response forever."""

    async def test(setup: Setup) -> None:
        setup.storage.paused_calls = {"upload_part"}
        await setup.bundles.upload(chunks_until_resume(9, setup.storage), UploadClaims())

    run(test, parts=3)


async def cancel_before_response(upload: asyncio.Task[Any], storage: ControlledStorage) -> None:
    """Cancel an upload while S3 has not responded; S3 responds afterwards."""
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    storage.resume.set()


@pytest.mark.parametrize("mebibytes", [1, 6, 20])
def test_cancelled_upload_leaves_nothing_in_s3(run: Run, mebibytes: int) -> None:
    """Calls that took effect in S3 are undone, even if their response had not arrived yet."""

    async def test(setup: Setup) -> None:
        setup.storage.paused_calls = {"put", "upload_part"}
        bundle = split(bytes(mebibytes * MIB))
        upload = asyncio.create_task(setup.bundles.upload(bundle, UploadClaims()))
        await setup.storage.paused.wait()
        await cancel_before_response(upload, setup.storage)
        await setup.bundles.close()
        assert setup.is_empty()

    run(test)


def test_upload_cancelled_while_its_client_is_silent_leaves_nothing_in_s3(run: Run) -> None:
    async def test(setup: Setup) -> None:
        stalled = asyncio.Event()
        chunks = stall(bytes(11 * MIB), stalled)
        upload = asyncio.create_task(setup.bundles.upload(chunks, UploadClaims()))
        await stalled.wait()
        await cancel_before_response(upload, setup.storage)
        await setup.bundles.close()
        assert "upload_part" in setup.storage.calls
        assert setup.is_empty()

    run(test)


def test_upload_cancelled_while_s3_completes_it_leaves_nothing_in_s3(run: Run) -> None:
    """The object exists by then. Only the response to CompleteMultipartUpload is missing."""

    async def test(setup: Setup) -> None:
        setup.storage.paused_calls = {"complete_upload"}
        bundle = split(bytes(11 * MIB))
        upload = asyncio.create_task(setup.bundles.upload(bundle, UploadClaims()))
        await setup.storage.paused.wait()
        assert setup.objects()
        await cancel_before_response(upload, setup.storage)
        await setup.bundles.close()
        assert setup.is_empty()

    run(test)


@pytest.mark.parametrize("mebibytes", [1, 6])
def test_upload_that_fails_a_check_creates_no_object(run: Run, mebibytes: int) -> None:
    async def test(setup: Setup) -> None:
        with pytest.raises(DigestMismatch):
            await setup.bundles.upload(
                split(bytes(mebibytes * MIB)), UploadClaims(digests=["0" * 64])
            )
        await setup.bundles.close()
        assert setup.storage.calls == [] or mebibytes > 1
        assert not {"put", "complete_upload"} & set(setup.storage.calls)
        assert setup.is_empty()

    run(test)


@pytest.mark.parametrize("mebibytes", [6, 20])
def test_close_waits_for_the_cleanup_of_cancelled_uploads(run: Run, mebibytes: int) -> None:
    """At the end of a graceful shutdown, the server cancels running uploads and closes at once."""

    async def test(setup: Setup) -> None:
        setup.storage.paused_calls = {"upload_part"}
        bundle = split(bytes(mebibytes * MIB))
        upload = asyncio.create_task(setup.bundles.upload(bundle, UploadClaims()))
        await setup.storage.paused.wait()
        upload.cancel()
        setup.storage.resume.set()
        await setup.bundles.close()
        assert upload.cancelled()
        assert setup.is_empty()

    run(test)


@pytest.mark.parametrize("mebibytes", [1, 6])
def test_failed_uploads_hold_no_memory_while_their_cleanup_waits_for_s3(
    run: Run, mebibytes: int
) -> None:
    """The memory is too small for four such uploads at once."""

    async def test(setup: Setup) -> None:
        setup.storage.failing_calls = {"put", "complete_upload", "delete"}
        for _ in range(4):
            with pytest.raises(StorageUnavailable):
                await setup.bundles.upload(split(bytes(mebibytes * MIB)), UploadClaims())
        await asyncio.sleep(0.05)
        assert setup.memory.windows.in_use == setup.memory.buffers.in_use == 0
        assert len(setup.s3.list_objects_v2(Bucket=setup.bucket)["Contents"]) == 4
        setup.storage.failing_calls = set()
        await setup.bundles.close()
        assert setup.is_empty()

    run(test)


def test_close_waits_for_the_cleanup_only_for_its_timeout(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.bundles.background.CLOSE_TIMEOUT", 0.2)

    async def test(setup: Setup) -> None:
        setup.storage.failing_calls = {"put", "delete"}
        with pytest.raises(StorageUnavailable):
            await setup.bundles.upload(split(bytes(MIB)), UploadClaims())

    run(test)
    assert "to the bucket's lifecycle" in caplog.text


def test_uploads_at_the_same_time_all_complete_with_the_smallest_memory(run: Run) -> None:
    """It holds less than one part of each. The others wait until a part has been sent."""
    bundles = [random_bytes(seed, 2 * PART + 1000) for seed in range(5)]

    async def test(setup: Setup) -> None:
        most = 0

        async def chunks(bundle: bytes) -> AsyncIterator[bytes]:
            nonlocal most
            async for chunk in split(bundle):
                yield chunk
                most = max(most, setup.memory.windows.in_use + setup.memory.buffers.in_use)

        uploads = [setup.bundles.upload(chunks(bundle), UploadClaims()) for bundle in bundles]
        ids = [str(bundle_id) for bundle_id, _ in await asyncio.gather(*uploads)]
        stored = setup.objects()
        assert [stored[bundle_id][0] for bundle_id in ids] == bundles
        assert PART < most <= 2 * PART

    run(test)


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
@pytest.mark.parametrize("action", [ResetRequest(MIB), Respond(503)], ids=repr)
def test_failure_of_s3_is_retried(
    run: Run, proxy: Proxy, operation: str, action: ResetRequest | Respond
) -> None:
    bundle = random_bytes(4, 3 * MIB if operation == "PutObject" else PART + 3 * MIB)

    async def test(setup: Setup) -> None:
        proxy.faults.append(Fault(operation, action, times=2))
        bundle_id, _ = await setup.bundles.upload(split(bundle), UploadClaims())
        assert setup.objects()[str(bundle_id)][0] == bundle
        assert proxy.faults[0].injected == 2

    run(test, endpoint_url=proxy.url)


def test_failure_of_s3_is_noticed_while_the_client_is_silent(run: Run, proxy: Proxy) -> None:
    async def test(setup: Setup) -> None:
        proxy.faults.append(Fault("UploadPart", Respond(403, "AccessDenied", after_bytes=1)))
        chunks = stall(bytes(PART + MIB), asyncio.Event())
        with pytest.raises(StorageUnavailable):
            await setup.bundles.upload(chunks, UploadClaims())
        assert setup.memory.windows.in_use == 0
        await setup.bundles.close()
        assert setup.is_empty()

    run(test, endpoint_url=proxy.url)
