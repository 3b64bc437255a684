"""Uploads of known length: streamed through one PutObject, and cut if a check fails."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from service.bundles.proof import Proof, UploadClaims, compute_receipt
from service.errors import (
    ClientGone,
    DigestMismatch,
    EmptyBundle,
    HistoryError,
    HmacMismatch,
    StorageUnavailable,
    UploadTimeout,
)
from tests.bundles.transfers.service_setup import CHUNK, Run, Setup, split, stall
from tests.support.clients.signing import random_bytes, sign
from tests.support.proxy import DropResponse, Fault, Proxy, ResetRequest, Respond

MIB = 1 << 20
KEY = "the key of a streamed upload"
BUNDLE = random_bytes(1, 6 * MIB + 1000)
SMALL = BUNDLE[:1000]


def test_upload_is_sent_to_s3_while_it_arrives(run: Run) -> None:
    """Of each upload, one chunk is held back, one is ready to be sent, and one is on its way."""

    async def test(setup: Setup) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            sent = [0, 0]
            async for chunk in split(BUNDLE):
                yield chunk
                assert sent[-2] <= setup.storage.sent <= sent[-1]
                sent.append(sent[-1] + len(chunk))
            assert setup.memory.windows.in_use > 0

        bundle_id, _ = await setup.bundles.upload(chunks(), UploadClaims(), length=len(BUNDLE))
        assert setup.objects()[str(bundle_id)][0] == BUNDLE
        assert setup.storage.calls == ["put"]

    run(test)


@pytest.mark.parametrize("bundle", [SMALL[:1], SMALL, BUNDLE], ids=len)
def test_record_is_stored_with_the_object(run: Run, bundle: bytes) -> None:
    signature = sign(KEY, bundle)["X-HMAC"]
    sha256 = hashlib.sha256(bundle).hexdigest()

    async def test(setup: Setup) -> None:
        async def upload(claims: UploadClaims) -> tuple[UUID, dict[str, str]]:
            bundle_id, record = await setup.bundles.upload(
                split(bundle), claims, length=len(bundle), ttl=50
            )
            stored, tags = setup.objects()[str(bundle_id)]
            assert stored == bundle
            assert tags == record.to_fields()
            return bundle_id, tags

        known = {"expires-at": "50", "size": str(len(bundle))}
        assert (await upload(UploadClaims()))[1] == known
        _, tags = await upload(UploadClaims(signature, digests=[sha256, sha256]))
        assert tags == {**known, "hmac-sha256": signature, "sha256": sha256}
        bundle_id, tags = await upload(UploadClaims(signature, KEY.encode()))
        receipt = compute_receipt(Proof(signature, KEY.encode()), bundle_id)
        assert tags == {**known, "hmac-sha256": signature, "receipt": receipt}
        assert setup.storage.calls == ["put"] * 3

    run(test)


WRONG = hashlib.sha256(b"other bytes").hexdigest()


FAILURES = {
    DigestMismatch: (UploadClaims(digests=[WRONG]), 0, 0),
    HmacMismatch: (UploadClaims(WRONG, KEY.encode()), 0, 0),
    UploadTimeout: (UploadClaims(), 60, 0),
    ClientGone: (UploadClaims(), 0, 1),
}
"""What an upload claims, how long it takes, and how many bytes it lacks, for each error."""


@pytest.mark.parametrize("bundle", [SMALL, BUNDLE], ids=len)
@pytest.mark.parametrize("error", FAILURES)
def test_upload_that_fails_a_check_is_cut_before_its_last_byte(
    run: Run, bundle: bytes, error: type[HistoryError | ClientGone]
) -> None:
    claims, seconds, missing = FAILURES[error]
    now = 0.0

    async def test(setup: Setup) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal now
            async for chunk in split(bundle):
                yield chunk
            now = seconds

        with pytest.raises(error):
            await setup.bundles.upload(chunks(), claims, length=len(bundle) + missing)
        await setup.bundles.close()
        assert setup.storage.sent == (len(bundle) - 1) // CHUNK * CHUNK
        assert setup.storage.calls == (["delete", "delete"] if bundle is BUNDLE else [])
        assert setup.is_empty()
        assert setup.metric(f'history_uploads_aborted_total{{reason="{error.code}"}}') == 1

    run(test, clock=lambda: now)


def test_object_that_the_store_creates_after_its_removal_is_removed_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versitygw creates an object of what had arrived of a request that was cut, a moment later."""

    async def test(setup: Setup) -> None:
        delete, deleted = setup.storage.delete, list[UUID]()

        async def delete_too_early(bundle_id: UUID) -> None:
            await delete(bundle_id)
            if not deleted:
                setup.s3.put_object(Bucket=setup.bucket, Key=f"history/{bundle_id}", Body=b"late")
            deleted.append(bundle_id)

        monkeypatch.setattr(setup.storage, "delete", delete_too_early)
        claims = UploadClaims(digests=[WRONG])
        with pytest.raises(DigestMismatch):
            await setup.bundles.upload(split(BUNDLE), claims, length=len(BUNDLE))
        await setup.bundles.close()
        assert len(deleted) == 2
        assert setup.is_empty()

    run(test)


def test_upload_that_ends_just_before_it_expires_is_stored(run: Run) -> None:
    now = 0.0

    async def test(setup: Setup) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal now
            async for chunk in split(BUNDLE):
                yield chunk
            now = 59.9

        _, record = await setup.bundles.upload(chunks(), UploadClaims(), length=len(BUNDLE))
        assert record.expires_at == 60
        assert len(setup.objects()) == 1

    run(test, clock=lambda: now)


@pytest.mark.parametrize("size", [len(SMALL), len(BUNDLE)])
@pytest.mark.parametrize("known", [True, False])
def test_bundle_that_expires_while_s3_completes_it_is_removed(
    run: Run, size: int, *, known: bool
) -> None:
    now = 0.0

    async def test(setup: Setup) -> None:
        nonlocal now
        setup.storage.paused_calls = {"put", "complete_upload"}
        upload = asyncio.create_task(
            setup.bundles.upload(
                split(BUNDLE[:size]), UploadClaims(), length=size if known else None
            )
        )
        await setup.storage.paused.wait()
        assert len(setup.objects()) == 1
        now = 60
        setup.storage.resume.set()
        with pytest.raises(UploadTimeout):
            await upload
        await setup.bundles.close()
        assert setup.is_empty()

    run(test, clock=lambda: now)


def test_empty_upload_is_refused(run: Run) -> None:
    async def test(setup: Setup) -> None:
        with pytest.raises(EmptyBundle):
            await setup.bundles.upload(split(b""), UploadClaims(), length=0)
        assert setup.storage.calls == []

    run(test)


def test_upload_cancelled_before_its_end_is_cut(run: Run) -> None:
    async def test(setup: Setup) -> None:
        stalled = asyncio.Event()
        chunks = stall(BUNDLE, stalled)
        upload = asyncio.create_task(
            setup.bundles.upload(chunks, UploadClaims(), length=len(BUNDLE))
        )
        await stalled.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        await setup.bundles.close()
        assert setup.storage.sent < len(BUNDLE)
        assert setup.storage.calls == ["delete", "delete"]
        assert setup.is_empty()

    run(test)


@pytest.mark.parametrize("bundle", [SMALL, BUNDLE], ids=len)
def test_upload_cancelled_while_s3_completes_it_leaves_nothing(run: Run, bundle: bytes) -> None:
    """The object exists by then. Only the response to PutObject is missing."""

    async def test(setup: Setup) -> None:
        setup.storage.paused_calls = {"put"}
        upload = asyncio.create_task(
            setup.bundles.upload(split(bundle), UploadClaims(), length=len(bundle))
        )
        await setup.storage.paused.wait()
        assert len(setup.objects()) == 1
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        closing = asyncio.create_task(setup.bundles.close())
        await asyncio.sleep(0.05)
        assert setup.storage.calls == ["put"], "the object was deleted before S3 has responded"
        setup.storage.resume.set()
        await closing
        assert setup.is_empty()

    run(test)


def test_failed_uploads_hold_no_memory_while_their_cleanup_waits_for_s3(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.storage.failing_calls = {"put", "delete"}
        for _ in range(4):
            with pytest.raises(StorageUnavailable):
                await setup.bundles.upload(split(BUNDLE), UploadClaims(), length=len(BUNDLE))
        await asyncio.sleep(0.05)
        assert setup.memory.windows.in_use == setup.memory.buffers.in_use == 0
        assert len(setup.objects()) == 4
        setup.storage.failing_calls = set()
        await setup.bundles.close()
        assert setup.is_empty()

    run(test)


ACTIONS = [ResetRequest(5 * MIB), ResetRequest(1), Respond(503), DropResponse()]


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_failure_of_s3_is_retried_while_the_start_is_in_memory(
    run: Run, proxy: Proxy, action: ResetRequest | Respond | DropResponse
) -> None:
    async def test(setup: Setup) -> None:
        proxy.faults.append(Fault("PutObject", action, times=2))
        bundle_id, _ = await setup.bundles.upload(split(BUNDLE), UploadClaims(), length=len(BUNDLE))
        assert [request.operation for request in proxy.requests] == ["PutObject"] * 3
        assert setup.objects()[str(bundle_id)][0] == BUNDLE

    run(test, parts=4, endpoint_url=proxy.url)


@pytest.mark.parametrize(
    ("parts", "size"), [(6, 10 * MIB), (2, 6 * MIB)], ids=["over 8 MiB", "memory is short"]
)
def test_failure_of_s3_fails_the_upload_if_its_start_is_not_in_memory(
    run: Run, proxy: Proxy, parts: int, size: int
) -> None:
    bundle = random_bytes(2, size)

    async def test(setup: Setup) -> None:
        proxy.faults.append(Fault("PutObject", ResetRequest(size - MIB)))
        with pytest.raises(StorageUnavailable):
            await setup.bundles.upload(split(bundle), UploadClaims(), length=size)
        assert setup.memory.buffers.in_use == setup.memory.windows.in_use == 0
        await setup.bundles.close()
        assert setup.is_empty()
        operations = [request.operation for request in proxy.requests]
        assert operations == ["PutObject", "DeleteObject", "DeleteObject"]

    run(test, parts=parts, endpoint_url=proxy.url)


def test_failure_of_s3_is_noticed_while_the_client_is_silent(run: Run, proxy: Proxy) -> None:
    async def test(setup: Setup) -> None:
        all_but_the_last_chunk = (len(BUNDLE) - 1) // CHUNK * CHUNK
        denied = Respond(403, "AccessDenied", after_bytes=all_but_the_last_chunk)
        proxy.faults.append(Fault("PutObject", denied))
        chunks = stall(BUNDLE, asyncio.Event())
        with pytest.raises(StorageUnavailable):
            await setup.bundles.upload(chunks, UploadClaims(), length=2 * len(BUNDLE))
        assert setup.memory.windows.in_use == 0
        await setup.bundles.close()
        assert setup.is_empty()

    run(test, endpoint_url=proxy.url)
