"""Clients with wrong keys cost a few reads of a bundle, and do not delay others."""

import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx
import pytest

from service.bundles.limits import FAILURE_PERIOD, MAX_FAILURES
from service.http.problems import STATUS
from tests.end_to_end.abuse.latency import summarize
from tests.support.clients.malicious import Attack, running_attacks
from tests.support.clients.signing import random_bytes, sign
from tests.support.proxy import Proxy
from tests.support.services.metrics import metric_total
from tests.support.services.process import service_process_for
from tests.support.services.thread import StartService
from tests.support.stores import Store
from tests.support.stores.servers import sink

MIB = 1 << 20
SIZE = 95 * MIB
SMALL, LARGE = UUID(int=4096), UUID(int=SIZE)
"""Bundles of the store that discards everything: the size of each is in its id."""


def test_wrong_keys_get_429_after_five_reads(store: Store, start_service: StartService) -> None:
    bundle = random_bytes(1, 2 * MIB)
    proof = sign("the right key", bundle)
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url)
        bundle_id = service.upload(bundle, proof["X-HMAC"])
        wrong = {**proof, "X-SIGNING-KEY": "a wrong key"}
        with ThreadPoolExecutor(8) as threads:
            responses = list(threads.map(lambda _: service.fetch(bundle_id, wrong), range(8)))
        statuses = Counter(response.status_code for response in responses)
        assert statuses == {401: MAX_FAILURES, STATUS["too_many_attempts"]: 8 - MAX_FAILURES}
        proxy.requests.clear()
        response = service.fetch(bundle_id, proof)
        assert (response.status_code, response.json()["code"]) == (429, "too_many_attempts")
        assert FAILURE_PERIOD - 60 < int(response.headers["Retry-After"]) <= FAILURE_PERIOD
        assert "GetObject" not in {request.operation for request in proxy.requests}


def measure_downloads(url: str, seconds: float) -> list[float]:
    """Return the seconds of each download of a small bundle, one after the other."""
    times = list[float]()
    deadline = time.monotonic() + seconds
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        while time.monotonic() < deadline:
            started = time.monotonic()
            assert len(http.get(f"/files/{SMALL}").raise_for_status().content) == SMALL.int
            times.append(time.monotonic() - started)
    return times


@pytest.mark.soak
def test_clients_with_wrong_keys_do_not_delay_others_at_full_size() -> None:
    """Eight clients try wrong keys for a bundle of 95 MiB, without a pause."""
    request = (
        f"GET /files/{LARGE} HTTP/1.1\r\nHost: x\r\n"
        f"X-HMAC: {'0' * 64}\r\nX-SIGNING-KEY: a wrong key\r\n\r\n"
    )
    with (
        sink(object_size=SIZE) as store,
        service_process_for(store, "a-bucket", HISTORY_REQUIRE_HMAC="false") as (url, _),
    ):
        measure_downloads(url, 1)
        alone = measure_downloads(url, 20)
        with running_attacks(url, Attack(8, request, flood=True)) as attackers:
            beside = measure_downloads(url, 20)
            [report] = attackers.stop()
        page = httpx.get(f"{url}/metrics", trust_env=False).text
    print(f"\nalone: {summarize(alone)}\nbeside wrong keys: {summarize(beside)}\n{report}")
    assert metric_total(page, r'verifications_total\{outcome="refused",way=".*?"\}') == MAX_FAILURES
    p99 = [statistics.quantiles(times, n=100)[98] for times in (alone, beside)]
    assert p99[1] <= 2 * p99[0]
