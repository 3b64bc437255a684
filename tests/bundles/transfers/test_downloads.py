"""Downloads: verified from memory or read twice, and only of complete bundles."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import aclosing
from uuid import UUID, uuid4

import pytest

from service.bundles import access
from service.bundles.access import Download
from service.bundles.proof import HmacVerifier, Proof, UploadClaims
from service.bundles.ranges import RangeRequest
from service.errors import InvalidHmac, MissingHeader, NotFound
from tests.bundles.transfers.service_setup import Run, Setup, split
from tests.support.clients.signing import random_bytes, sign

MIB = 1 << 20
KEY = "the key of a download"
BUNDLE = random_bytes(6, 2 * MIB + 1000)
SIGNATURE = sign(KEY, BUNDLE)["X-HMAC"]
PROOF = Proof(SIGNATURE, KEY.encode())
WHOLE = RangeRequest()


async def upload(setup: Setup, *, key: bytes | None = None, length_known: bool = True) -> UUID:
    length = len(BUNDLE) if length_known else None
    bundle_id, _ = await setup.bundles.upload(
        split(BUNDLE), UploadClaims(SIGNATURE, key), length=length
    )
    setup.storage.calls.clear()
    return bundle_id


async def read(download: Download) -> bytes:
    assert download.content is not None
    async with aclosing(download.content) as content:
        return b"".join([bytes(chunk) async for chunk in content])


async def fetch(
    setup: Setup, bundle_id: UUID, proof: Proof | None = PROOF, requested: RangeRequest = WHOLE
) -> bytes:
    return await read(await setup.bundles.download(bundle_id, proof, requested))


def verifications(setup: Setup, way: str, outcome: str = "held") -> float:
    return setup.metric(f'history_verifications_total{{outcome="{outcome}",way="{way}"}}')


def test_first_download_is_sent_from_memory(run: Run) -> None:
    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup)
        download = await setup.bundles.download(bundle_id, PROOF, WHOLE)
        assert setup.memory.buffers.in_use == len(BUNDLE)
        assert await read(download) == BUNDLE
        assert setup.memory.buffers.in_use == 0
        assert setup.storage.calls.count("open") == 1
        assert verifications(setup, "memory") == 1

    run(test)


@pytest.mark.parametrize("memory_is_short", [False, True])
def test_another_thread_computes_the_hmac_of_a_large_bundle(
    run: Run, monkeypatch: pytest.MonkeyPatch, *, memory_is_short: bool
) -> None:
    """Every byte once and in order. Only a few bytes are worth no switch."""
    hashed: list[tuple[bool, bytes]] = []
    update_all = HmacVerifier.update_all

    def recording_update_all(self: HmacVerifier, chunks: Sequence[bytes]) -> None:
        hashed.append((threading.current_thread() is test_thread, b"".join(chunks)))
        update_all(self, chunks)

    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup)
        reservation = setup.memory.reserve(3 * MIB) if memory_is_short else None
        assert await fetch(setup, bundle_id) == BUNDLE
        assert verifications(setup, "two_reads" if memory_is_short else "memory") == 1
        if reservation is not None:
            reservation.release()

    test_thread = threading.current_thread()
    monkeypatch.setattr(HmacVerifier, "update_all", recording_update_all)
    monkeypatch.setattr(access, "MAX_HASHED_HERE", 1000)  # Chunks can be of any size here.
    run(test)
    assert b"".join(content for _, content in hashed) == BUNDLE
    assert all(len(content) <= 1000 for here, content in hashed if here)
    assert not all(here for here, _ in hashed)


def test_first_download_reads_twice_if_memory_is_short(run: Run) -> None:
    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup)
        reservation = setup.memory.reserve(3 * MIB)
        assert reservation is not None
        assert await fetch(setup, bundle_id) == BUNDLE
        assert setup.memory.buffers.in_use == 3 * MIB
        assert setup.storage.calls.count("open") == 2
        assert verifications(setup, "two_reads") == 1
        reservation.release()

    run(test)


@pytest.mark.parametrize("memory_is_short", [False, True])
def test_range_of_an_unverified_bundle(run: Run, *, memory_is_short: bool) -> None:
    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup)
        reservation = setup.memory.reserve(3 * MIB if memory_is_short else 0)
        assert reservation is not None
        with reservation:
            part = await fetch(setup, bundle_id, requested=RangeRequest("bytes=65535-1000000"))
        assert part == BUNDLE[65535:1000001]
        assert setup.storage.calls.count("open") == 1 + memory_is_short

    run(test)


def test_receipt_is_stored_while_nobody_waits_for_it(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.storage.paused_calls = {"put_tags"}
        bundle_id = await upload(setup)
        assert await fetch(setup, bundle_id) == BUNDLE
        assert "receipt" not in setup.objects()[str(bundle_id)][1]
        assert verifications(setup, "receipt") == 0
        setup.storage.resume.set()
        await setup.bundles.close()
        assert "receipt" in setup.objects()[str(bundle_id)][1]
        setup.storage.calls.clear()
        assert await fetch(setup, bundle_id) == BUNDLE
        assert setup.storage.calls == ["open"]
        assert (verifications(setup, "memory"), verifications(setup, "receipt")) == (1, 1)

    run(test)


def test_receipt_that_cannot_be_stored_changes_nothing(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(setup: Setup) -> None:
        setup.storage.failing_calls = {"put_tags"}
        bundle_id = await upload(setup)
        for _ in range(2):
            assert await fetch(setup, bundle_id) == BUNDLE
        await setup.bundles.close()
        assert verifications(setup, "memory") == 2

    run(test)
    assert caplog.text.count("a receipt could not be stored") == 2


def test_bundle_that_was_verified_during_its_upload_is_not_read_first(run: Run) -> None:
    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup, key=KEY.encode())
        download = await setup.bundles.download(bundle_id, PROOF, WHOLE)
        assert setup.memory.buffers.in_use == 0
        assert await read(download) == BUNDLE
        assert setup.storage.calls == ["open"]

    run(test)


def test_head_verifies_a_bundle_without_keeping_it(run: Run) -> None:
    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup)
        download = await setup.bundles.download(bundle_id, PROOF, WHOLE, body=False)
        assert (download.content, download.stat.size) == (None, len(BUNDLE))
        await setup.bundles.close()
        assert verifications(setup, "one_read") == 1
        assert setup.storage.calls == ["open", "put_tags"]
        await setup.bundles.download(bundle_id, PROOF, WHOLE, body=False)
        assert verifications(setup, "receipt") == 1
        assert setup.storage.calls == ["open", "put_tags"]

    run(test)


WRONG_KEY = Proof(SIGNATURE, b"a wrong signing key")


@pytest.mark.parametrize("verified", [False, True])
def test_wrong_proof_gets_nothing(run: Run, *, verified: bool) -> None:
    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup, key=KEY.encode() if verified else None)
        for proof, error in (
            (WRONG_KEY, InvalidHmac),
            (Proof("0" * 64, KEY.encode()), InvalidHmac),
            (None, MissingHeader),
        ):
            with pytest.raises(error):
                await setup.bundles.download(bundle_id, proof, WHOLE)
            assert setup.memory.windows.in_use == setup.memory.buffers.in_use == 0
        with pytest.raises(InvalidHmac):
            await setup.bundles.delete(bundle_id, WRONG_KEY, WHOLE)
        way = "receipt" if verified else "memory"
        assert verifications(setup, way, "refused") == 1 + verified
        assert verifications(setup, "tag", "refused") == 1
        assert "put_tags" not in setup.storage.calls
        assert await fetch(setup, bundle_id) == BUNDLE

    run(test)


@pytest.mark.parametrize("size", [0, 1, len(BUNDLE) - 1, len(BUNDLE) + 1])
def test_object_of_another_size_than_its_record_is_not_found(run: Run, size: int) -> None:
    """Some stores keep what has arrived of a request that is cut."""

    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup, key=KEY.encode())
        tags = setup.objects()[str(bundle_id)][1]
        setup.s3.put_object(
            Bucket=setup.bucket,
            Key=f"history/{bundle_id}",
            Body=(BUNDLE + b"1")[:size],
            Tagging="&".join(f"{name}={value}" for name, value in tags.items()),
        )
        for body in (True, False):
            with pytest.raises(NotFound):
                await setup.bundles.download(bundle_id, PROOF, WHOLE, body=body)
        with pytest.raises(NotFound):
            await fetch(setup, bundle_id, requested=RangeRequest("bytes=0-0"))
        with pytest.raises(NotFound):
            await setup.bundles.delete(bundle_id, PROOF, WHOLE)

    run(test)


def test_bundle_is_not_found_from_its_expiry_on(run: Run) -> None:
    now = 0.5

    async def test(setup: Setup) -> None:
        nonlocal now
        known, unknown = await upload(setup), await upload(setup, length_known=False)
        now = 60.9
        for bundle_id in (known, unknown):
            assert await fetch(setup, bundle_id) == BUNDLE
        now = 61
        for bundle_id in (known, unknown, uuid4()):
            with pytest.raises(NotFound):
                await setup.bundles.download(bundle_id, PROOF, WHOLE)

    run(test, clock=lambda: now)


def test_bundle_without_an_hmac_needs_no_proof_if_none_is_required(run: Run) -> None:
    async def test(setup: Setup) -> None:
        claims = UploadClaims()
        bundle_id, _ = await setup.bundles.upload(split(BUNDLE), claims, length=len(BUNDLE))
        protected = await upload(setup)
        assert await fetch(setup, bundle_id, None) == BUNDLE
        assert await fetch(setup, bundle_id) == BUNDLE
        with pytest.raises(MissingHeader):
            await setup.bundles.download(protected, None, WHOLE)
        await setup.bundles.close()
        assert "put_tags" not in setup.storage.calls

    run(test, require_hmac=False)


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.006, 0.01, 0.02])
def test_download_cancelled_at_any_time_leaves_nothing_in_use(run: Run, delay: float) -> None:
    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup)
        download = asyncio.create_task(setup.bundles.download(bundle_id, PROOF, WHOLE))
        await asyncio.sleep(delay)
        download.cancel()
        await asyncio.wait([download])
        if not download.cancelled() and (content := download.result().content):
            await content.aclose()
        assert setup.memory.windows.in_use == setup.memory.buffers.in_use == 0
        assert await fetch(setup, bundle_id) == BUNDLE

    run(test)
