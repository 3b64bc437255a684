"""Each caller may have so many uploads at once, and upload so many bytes in an hour."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from service.bundles import limits
from service.bundles.limits import Caller, UploadLimits
from service.bundles.proof import UploadClaims
from service.errors import ClientGone, TooManyUploads
from tests.bundles.transfers.service_setup import UPLOAD_LIMIT, Run, Setup, split, stall

MIB = 1 << 20
PHONE, DESKTOP = Caller("phone"), Caller("desktop")


class Clock:
    """A clock that tests advance."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_caller_has_so_many_uploads_at_once() -> None:
    uploads = UploadLimits(at_once=2)
    with uploads.upload(PHONE, 1), uploads.upload(PHONE, None):
        with pytest.raises(TooManyUploads), uploads.upload(PHONE, 1):
            pass
        with uploads.upload(DESKTOP, 1), uploads.upload(Caller("jwt", "a"), 1):
            pass
    with uploads.upload(PHONE, 1), uploads.upload(PHONE, 1):
        pass


def test_each_caller_has_so_many_bytes_in_an_hour() -> None:
    clock = Clock()
    uploads = UploadLimits(bytes_per_hour=3600, clock=clock)
    with uploads.upload(PHONE, 3600) as count:
        count(1800)
        count(1800)
    with pytest.raises(TooManyUploads) as refusal, uploads.upload(PHONE, 100):
        pass
    assert refusal.value.retry_after == 100
    with uploads.upload(DESKTOP, 3600):
        pass
    clock.now += 100
    with uploads.upload(PHONE, 100) as count:
        count(100)
    with pytest.raises(TooManyUploads), uploads.upload(PHONE, None):
        pass
    clock.now += 3600
    with uploads.upload(PHONE, 3600):
        pass


def test_upload_of_unknown_length_ends_at_the_limit() -> None:
    uploads = UploadLimits(bytes_per_hour=3600, clock=Clock())
    with uploads.upload(PHONE, None) as count:
        count(3600)
        with pytest.raises(TooManyUploads):
            count(1)


def test_bytes_that_never_arrive_do_not_count() -> None:
    uploads = UploadLimits(bytes_per_hour=3600, clock=Clock())
    for _ in range(10):
        with uploads.upload(PHONE, 2600) as count:
            count(100)
    with pytest.raises(TooManyUploads), uploads.upload(PHONE, 2601):
        pass


def test_declared_bytes_count_from_the_start_of_an_upload() -> None:
    """So uploads at the same time that do not all fit are not cut in the middle."""
    clock = Clock()
    uploads = UploadLimits(bytes_per_hour=3600, clock=clock)
    with ExitStack() as running:
        arrive = [running.enter_context(uploads.upload(PHONE, 1000)) for _ in range(3)]
        with pytest.raises(TooManyUploads) as refusal, uploads.upload(PHONE, 1000):
            pass
        assert refusal.value.retry_after == 400
        clock.now += 400
        arrive.append(running.enter_context(uploads.upload(PHONE, 1000)))
        for _ in range(10):
            for upload in arrive:
                upload(100)
        with pytest.raises(TooManyUploads):
            arrive[0](1)
    with pytest.raises(TooManyUploads), uploads.upload(PHONE, 1):
        pass


def test_bytes_that_never_arrive_are_given_back() -> None:
    uploads = UploadLimits(bytes_per_hour=3600, clock=Clock())
    with uploads.upload(PHONE, 1600) as arrive_first:
        with uploads.upload(PHONE, 2000) as arrive_second:
            arrive_first(300)
            arrive_second(50)
            arrive_second(50)
        with pytest.raises(TooManyUploads), uploads.upload(PHONE, 1901):
            pass
        with uploads.upload(PHONE, 1900):
            pass
    with pytest.raises(TooManyUploads), uploads.upload(PHONE, 3201):
        pass
    with uploads.upload(PHONE, 3200):
        pass


def test_only_so_many_callers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CALLERS", 3)
    uploads = UploadLimits(at_once=1)
    with uploads.upload(PHONE, 1):
        for number in range(10):
            with uploads.upload(Caller("jwt", str(number)), 1):
                pass
        with pytest.raises(TooManyUploads), uploads.upload(PHONE, 1):
            pass


def test_upload_that_does_not_fit_beside_one_that_runs_is_refused(run: Run) -> None:
    async def test(setup: Setup) -> None:
        async def upload(chunks: AsyncIterator[bytes], length: int) -> None:
            await setup.bundles.upload(chunks, UploadClaims(), length=length, caller=PHONE)

        stalled = asyncio.Event()
        running = asyncio.create_task(upload(stall(bytes(MIB), stalled), UPLOAD_LIMIT))
        await stalled.wait()
        (refused,) = await asyncio.gather(upload(split(bytes(MIB)), MIB), return_exceptions=True)
        running.cancel()
        await asyncio.wait([running])
        assert isinstance(refused, TooManyUploads)
        with pytest.raises(ClientGone):  # It fits now.
            await upload(split(b"1"), UPLOAD_LIMIT - MIB)

    run(test)


def test_form_of_the_largest_bundle_fits_into_a_limit_of_its_size(run: Run) -> None:
    """Only the form is larger than what a caller may upload in an hour."""

    async def test(setup: Setup) -> None:
        setup.bundles.max_size = UPLOAD_LIMIT
        await setup.bundles.upload(
            split(bytes(1000)),
            UploadClaims(),
            length=UPLOAD_LIMIT + 500,
            form_overhead=1000,
            caller=PHONE,
        )

    run(test)


def test_upload_over_a_limit_leaves_nothing(run: Run) -> None:
    async def test(setup: Setup) -> None:
        with pytest.raises(TooManyUploads):
            await setup.bundles.upload(
                split(bytes(UPLOAD_LIMIT + MIB)), UploadClaims(), caller=PHONE
            )
        await setup.bundles.close()
        assert setup.is_empty()

    run(test)
