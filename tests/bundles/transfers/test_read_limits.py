"""Bundles are read to check a proof only so often: five failures of one, and four at once."""

import asyncio
import math
from uuid import UUID, uuid4

import pytest

from service.bundles.limits import (
    FAILURE_PERIOD,
    MAX_BUNDLES,
    MAX_FAILURES,
    MAX_READS,
    SMALL_READ,
    ReadLimits,
)
from service.bundles.proof import Proof, UploadClaims
from service.bundles.ranges import RangeRequest
from service.errors import (
    InvalidHmac,
    Overloaded,
    StorageUnavailable,
    TooManyAttempts,
)
from tests.bundles.simulated_loop import let_tasks_run, simulate
from tests.bundles.transfers.service_setup import Run, Setup, split
from tests.support.clients.signing import random_bytes, sign

BUNDLE_ID = UUID(int=1)
LARGE = SMALL_READ + 1
TIMEOUT = 10.0


def limits() -> ReadLimits:
    return ReadLimits(TIMEOUT, asyncio.get_running_loop().time)


async def fail(reads: ReadLimits, bundle_id: UUID = BUNDLE_ID, seconds: float = 0) -> None:
    """Read a bundle for so many seconds and find that the proof is wrong."""
    async with reads.read(bundle_id, LARGE):
        await asyncio.sleep(seconds)
        raise InvalidHmac


async def fail_often(reads: ReadLimits, count: int = MAX_FAILURES) -> None:
    for _ in range(count):
        with pytest.raises(InvalidHmac):
            await fail(reads)


def test_bundle_is_not_read_after_five_failures_in_ten_minutes() -> None:
    async def test() -> None:
        reads, now = limits(), asyncio.get_running_loop().time
        started = now()
        for _ in range(MAX_FAILURES):
            assert not reads.exceeded(BUNDLE_ID)
            with pytest.raises(InvalidHmac):
                await fail(reads)
            await asyncio.sleep(1)
        assert reads.exceeded(BUNDLE_ID)
        with pytest.raises(TooManyAttempts) as refusal:
            await fail(reads)
        end = started + FAILURE_PERIOD
        assert refusal.value.retry_after == math.ceil(end - now())
        await asyncio.sleep(end - 0.5 - now())
        assert reads.exceeded(BUNDLE_ID)
        await asyncio.sleep(0.5)
        assert not reads.exceeded(BUNDLE_ID)
        with pytest.raises(InvalidHmac):
            await fail(reads)
        assert reads.exceeded(BUNDLE_ID)
        with pytest.raises(InvalidHmac):
            await fail(reads)  # The next failure has become too old during the delay.

    simulate(test())


def test_other_bundles_can_be_read() -> None:
    async def test() -> None:
        reads = limits()
        await fail_often(reads)
        async with reads.read(uuid4(), LARGE):
            pass

    simulate(test())


def test_read_that_is_cancelled_has_failed() -> None:
    """Otherwise a client with wrong keys could always disconnect shortly before the end."""

    async def test() -> None:
        reads = limits()
        for _ in range(MAX_FAILURES):
            read = asyncio.create_task(fail(reads, seconds=1))
            await let_tasks_run()
            read.cancel()
            await asyncio.wait([read])
        assert reads.exceeded(BUNDLE_ID)

    simulate(test())


@pytest.mark.parametrize("error", [StorageUnavailable, None])
def test_neither_success_nor_a_failure_of_s3_counts(error: type[Exception] | None) -> None:
    async def test() -> None:
        reads = limits()
        await fail_often(reads, MAX_FAILURES - 1)
        for _ in range(10):
            try:
                async with reads.read(BUNDLE_ID, LARGE):
                    if error is not None:
                        raise error
            except StorageUnavailable:
                assert error is not None
        assert not reads.exceeded(BUNDLE_ID)

    simulate(test())


@pytest.mark.parametrize(
    ("size", "at_once"), [(LARGE, MAX_READS), (SMALL_READ, 20)], ids=["large", "small"]
)
def test_four_large_bundles_are_read_at_once(size: int, at_once: int) -> None:
    async def test() -> None:
        reads, running, most = limits(), 0, 0

        async def read() -> None:
            nonlocal running, most
            async with reads.read(uuid4(), size):
                running += 1
                most = max(most, running)
                await asyncio.sleep(1)
                running -= 1

        await asyncio.gather(*(read() for _ in range(20)))
        assert most == at_once

    simulate(test())


@pytest.mark.parametrize("size", [LARGE, SMALL_READ])
@pytest.mark.parametrize("before", range(MAX_FAILURES))
def test_reads_at_once_cannot_exceed_the_limit(size: int, before: int) -> None:
    async def test() -> None:
        reads = limits()
        await fail_often(reads, before)
        started = 0

        async def read() -> None:
            nonlocal started
            async with reads.read(BUNDLE_ID, size):
                started += 1
                await asyncio.sleep(1)
                raise InvalidHmac

        results = await asyncio.gather(*(read() for _ in range(12)), return_exceptions=True)
        assert started == MAX_FAILURES - before
        assert sorted(type(result).__name__ for result in results) == sorted(
            ["InvalidHmac"] * started + ["TooManyAttempts"] * (12 - started)
        )

    simulate(test())


def test_many_clients_with_the_right_key_can_read_at_once() -> None:
    async def test() -> None:
        reads = limits()
        await fail_often(reads, MAX_FAILURES - 1)

        async def read() -> None:
            async with reads.read(BUNDLE_ID, LARGE):
                await asyncio.sleep(0.1)

        await asyncio.gather(*(read() for _ in range(20)))

    simulate(test())


@pytest.mark.parametrize("other", [BUNDLE_ID, UUID(int=2)])
def test_read_that_waits_too_long_is_refused(other: UUID) -> None:
    async def test() -> None:
        reads = limits()
        running = [
            asyncio.create_task(fail(reads, other, seconds=2 * TIMEOUT)) for _ in range(MAX_READS)
        ]
        await let_tasks_run()
        with pytest.raises(Overloaded):
            await fail(reads)
        assert asyncio.get_running_loop().time() == TIMEOUT
        await asyncio.gather(*running, return_exceptions=True)
        with pytest.raises(InvalidHmac):
            await fail(reads)

    simulate(test())


def test_only_so_many_bundles_are_remembered() -> None:
    async def test() -> None:
        reads = limits()
        await fail_often(reads)
        for number in range(MAX_BUNDLES - 1):
            with pytest.raises(InvalidHmac):
                await fail(reads, UUID(int=1000 + number))
        assert reads.exceeded(BUNDLE_ID)
        with pytest.raises(InvalidHmac):
            await fail(reads, uuid4())
        assert not reads.exceeded(BUNDLE_ID)

    simulate(test())


# -- In the service -------------------------------------------------------------------------------

BUNDLE = random_bytes(7, 5000)
KEY = "the right key"
PROOF = Proof(sign(KEY, BUNDLE)["X-HMAC"], KEY.encode())
WRONG = Proof(PROOF.hmac, b"a wrong key")


async def upload(setup: Setup, key: bytes | None) -> UUID:
    bundle_id, _ = await setup.bundles.upload(
        split(BUNDLE), UploadClaims(PROOF.hmac, key), length=len(BUNDLE)
    )
    setup.storage.calls.clear()
    return bundle_id


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_wrong_keys_cost_five_reads(run: Run, method: str) -> None:
    async def request(setup: Setup, bundle_id: UUID, proof: Proof) -> None:
        if method == "DELETE":
            await setup.bundles.delete(bundle_id, proof, RangeRequest())
        else:
            body = method == "GET"
            download = await setup.bundles.download(bundle_id, proof, RangeRequest(), body=body)
            if download.content is not None:
                await download.content.aclose()

    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup, None)
        for _ in range(MAX_FAILURES):
            with pytest.raises(InvalidHmac):
                await request(setup, bundle_id, WRONG)
        for proof in (WRONG, PROOF):
            with pytest.raises(TooManyAttempts):
                await request(setup, bundle_id, proof)
        assert setup.storage.calls == ["open"] * MAX_FAILURES
        with pytest.raises(InvalidHmac):
            await request(setup, bundle_id, Proof("0" * 64, KEY.encode()))

    run(test)


def test_receipt_needs_no_read(run: Run) -> None:
    """Nobody can lock out the owner of a bundle with a receipt."""

    async def test(setup: Setup) -> None:
        bundle_id = await upload(setup, KEY.encode())
        for _ in range(2 * MAX_FAILURES):
            with pytest.raises(InvalidHmac):
                await setup.bundles.download(bundle_id, WRONG, RangeRequest())
        download = await setup.bundles.download(bundle_id, PROOF, RangeRequest())
        assert download.content is not None
        await download.content.aclose()

    run(test)
