"""Uploads with a length while S3 fails: they are repeated from memory as long as it holds them."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from service.bundles.buffers import MAX_REPLAY_SIZE
from service.s3 import retries
from tests.support.clients.signing import random_bytes, sign
from tests.support.polling import wait_until
from tests.support.proxy import (
    Delay,
    DropResponse,
    Fault,
    KeepCutBody,
    Proxy,
    Reset,
    ResetRequest,
    Respond,
)
from tests.support.services.thread import SMALL_PART, Service, StartService
from tests.support.stores import Store

pytestmark = pytest.mark.both_records

KEY = "a signing key"
MIB = 1 << 20
SIZES = [1, 1000, 100_000, 3 * MIB, MAX_REPLAY_SIZE - 1, MAX_REPLAY_SIZE]
LARGE = 12 * MIB


@pytest.fixture
def proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    with Proxy(store.endpoint_url) as running:
        yield running


@pytest.fixture
def service(proxy: Proxy, start_service: StartService) -> Service:
    return start_service(endpoint_url=proxy.url)


def is_unavailable(response: httpx.Response) -> bool:
    """Return whether a response says that S3 failed and that the client may try again."""
    problem = response.status_code, response.json()["code"]
    return problem == (503, "storage_unavailable") and "Retry-After" in response.headers


def test_clients_do_not_notice_refusals_and_resets_within_the_first_8_mib(
    service: Service, proxy: Proxy
) -> None:
    """S3 refuses every fifth request, and resets every fourth PutObject and every tenth GetObject.

    Refusals come at the start of a body, in its middle or at its end.
    """
    rng = random.Random(1)
    early = Fault(None, Respond(503, "SlowDown", after_bytes=0), times=None, after=4, every=10)
    late = Fault(None, Respond(503, "SlowDown", after_bytes=5 * MIB), times=None, after=9, every=10)
    resets = [
        Fault("PutObject", ResetRequest(int(2 ** rng.uniform(0, 23))), after=4 * number)
        for number in range(20)
    ]
    bodies = Fault("GetObject", Reset(MIB), times=None, after=3, every=10)
    # Only one fault is injected into a request. The rare ones come first, because the others may be
    # due for each of their requests.
    proxy.faults += [bodies, *resets, early, late]
    # In one of a thousand runs, one bundle would meet all resets.
    proxy.max_faults = retries.MAX_ATTEMPTS - 2
    sizes = SIZES * 3
    rng.shuffle(sizes)
    outcomes = asyncio.run(asyncio.wait_for(transfer_all(service, sizes), 60))
    injected = [early.injected, late.injected, bodies.injected]
    injected.append(sum(fault.injected for fault in resets))
    print(f"{dict(outcomes)}, {len(proxy.requests)} requests to S3, faults: {injected}")
    assert outcomes == {200: len(sizes)}
    assert all(injected)


async def transfer_all(service: Service, sizes: list[int]) -> Counter[int]:
    """Upload and download a bundle of each size, 6 at once; return how many got each status."""
    outcomes: Counter[int] = Counter()
    limit = asyncio.Semaphore(6)

    async def transfer(http: httpx.AsyncClient, seed: int, size: int) -> None:
        async with limit:
            bundle = random_bytes(seed, size)
            proof = sign(KEY, bundle)
            response = await http.post("/upload", content=bundle, headers=proof)
            if response.status_code == 200:
                response = await http.get(f"/files/{response.text}", headers=proof)
                assert response.content == bundle
            outcomes[response.status_code] += 1

    async with service.async_client() as http, asyncio.TaskGroup() as group:
        for seed, size in enumerate(sizes):
            group.create_task(transfer(http, seed, size))
    return outcomes


@pytest.mark.parametrize(
    "action",
    [Respond(503, "SlowDown", after_bytes=0), ResetRequest(0), ResetRequest(MIB)],
    ids=["refused", "reset at once", "reset"],
)
def test_large_upload_is_sent_again_if_s3_fails_at_its_start(
    store: Store, start_service: StartService, action: Respond | ResetRequest
) -> None:
    """What is in the kernel's buffers at the time of the failure counts as sent."""
    bundle = random_bytes(1, LARGE)
    with Proxy(store.endpoint_url, receive_buffer=64 * 1024) as proxy:
        service = start_service(endpoint_url=proxy.url)
        proxy.faults.append(Fault("PutObject", action))
        bundle_id = service.upload(bundle)
        assert proxy.faults[0].injected == 1
        assert service.fetch(bundle_id, sign(KEY, bundle)).content == bundle


@pytest.mark.parametrize(
    "action",
    [
        ResetRequest(MAX_REPLAY_SIZE + MIB),
        Respond(503, "SlowDown", after_bytes=MAX_REPLAY_SIZE + MIB),
        Respond(500, "InternalError"),
        DropResponse(),
    ],
    ids=["reset", "refused in the middle", "refused at the end", "lost response"],
)
def test_failure_of_s3_after_the_first_8_mib_is_a_503_and_leaves_nothing(
    service: Service, proxy: Proxy, caplog: pytest.LogCaptureFixture, action: Respond
) -> None:
    proxy.faults.append(Fault("PutObject", action))
    response = service.http.post("/upload", content=random_bytes(1, LARGE))
    assert is_unavailable(response)
    wait_until(lambda: not service.objects())
    assert [request.operation for request in proxy.requests].count("PutObject") == 1
    [message] = [record.message for record in caplog.records if record.name == "service.s3.calls"]
    assert message.startswith(("S3 refuses PutObject: ", "S3 cannot be reached for PutObject: "))
    assert "Unseekable" not in message
    assert service.upload(random_bytes(1, LARGE))


def test_upload_without_free_memory_is_not_sent_again(
    proxy: Proxy, start_service: StartService
) -> None:
    """The smallest memory has room for about 4 MiB beside one part, so the end is not in it."""
    service = start_service(
        endpoint_url=proxy.url, part_size=SMALL_PART, memory_budget=2 * SMALL_PART
    )
    at_start, at_end = (Fault("PutObject", ResetRequest(size)) for size in (MIB // 2, 5 * MIB))
    proxy.faults += [at_start, at_end]

    def body() -> Iterator[bytes]:
        yield random_bytes(1, MIB)
        wait_until(lambda: puts() == 2)  # The first MiB is being sent again.
        yield random_bytes(2, 5 * MIB)

    def puts() -> int:
        return [request.operation for request in proxy.requests].count("PutObject")

    response = service.http.post(
        "/upload", content=body(), headers={"Content-Length": str(6 * MIB)}
    )
    assert is_unavailable(response)
    assert [fault.injected for fault in (at_start, at_end)] == [1, 1]
    assert puts() == 2
    wait_until(lambda: not service.objects())


@pytest.mark.parametrize("size", [MIB * 3 // 2, 3 * MIB, LARGE])
def test_part_of_a_bundle_that_a_store_keeps_is_never_served_and_is_removed(
    service: Service, proxy: Proxy, size: int
) -> None:
    """Some stores keep what has arrived of a request that is cut."""
    keep = KeepCutBody()
    proxy.faults += [Fault("PutObject", keep), Fault("DeleteObject", Delay(1))]
    bundle = random_bytes(1, size)

    def body() -> Iterator[bytes]:
        yield bundle[:-1]
        # Otherwise the wrong HMAC may be noticed before anything has reached the store.
        wait_until(lambda: any(request.received for request in proxy.requests))
        yield bundle[-1:]

    wrong = {"X-HMAC": "0" * 64, "X-SIGNING-KEY": KEY, "Content-Length": str(size)}
    assert service.http.post("/upload", content=body(), headers=wrong).status_code == 422
    assert keep.kept.wait(5)
    [key] = service.objects()
    kept = service.s3.get_object(Bucket=service.bucket, Key=key)["Body"].read()
    assert kept == bundle[: len(kept)]
    assert 0 < len(kept) < size
    bundle_id = key.removeprefix(service.prefix)
    tags = service.record(bundle_id)
    assert tags["size"] == str(size)
    service.put_record(
        bundle_id, {name: tags[name] for name in tags.keys() - {"hmac-sha256", "receipt"}}
    )
    for proof in (sign(KEY, kept), sign(KEY, bundle)):
        for method in ("GET", "HEAD", "DELETE"):
            response = service.http.request(method, f"/files/{bundle_id}", headers=proof)
            assert response.status_code == 404
    wait_until(lambda: not service.objects())
