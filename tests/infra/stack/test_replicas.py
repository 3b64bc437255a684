"""Two replicas share a bucket and restart in turn, without a failed request."""

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.infra.stack.deployment import Stack, running_stack
from tests.infra.stack.nginx import find_nginx
from tests.infra.tools import find_or_skip
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.services.replicas import Replica
from tests.support.stores import Store

MIB = 1 << 20
KEY = "a signing key"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of nginx and the replicas."""
    return tmp_path_factory.mktemp("stack") / "output.log"


@pytest.fixture(scope="module")
def stack(store: Store, output: Path) -> Iterator[Stack]:
    find_or_skip(find_nginx)
    variables = {
        "HISTORY_BUCKET": f"history-{uuid4()}",
        "HISTORY_PART_SIZE": "5MiB",
        "HISTORY_DRAIN_DELAY": "3s",
        "HISTORY_LOG_LEVEL": "warning",
    }
    with output.open("ab") as log, running_stack(store, variables, output=log) as stack:
        yield stack


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    "bundles", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_uploaded_bundle_is_available_at_once_on_the_other_replica(
    stack: Stack, bundles: int
) -> None:
    uploader, downloader = (
        httpx.Client(base_url=replica.url, trust_env=False, timeout=30)
        for replica in stack.replicas
    )
    with uploader, downloader:
        for number in range(bundles):
            bundle = os.urandom(6 * MIB if number % 25 == 0 else 2000)
            bundle_id = uploader.post("/upload", content=bundle).text
            response = downloader.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert response.status_code == 200, f"bundle {number}: {response.text}"
            assert response.content == bundle
            uploader, downloader = downloader, uploader


@dataclass
class Load:
    """Clients that upload, download in several ways, and delete, and record all errors.

    A failed request is retried once, after the time in Retry-After. Each client has its own
    address, because nginx has limits per address.
    """

    url: str
    transfers: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    """The errors of first attempts and of retries, by request ID."""
    failures: list[str] = field(default_factory=list)
    """Requests that also failed on the retry, and wrong contents."""
    bundles: dict[str, bytes] = field(default_factory=dict)
    """The uploaded bundles that were not deleted, by ID."""
    stopping: threading.Event = field(default_factory=threading.Event)
    clients: list[Future[None]] = field(default_factory=list)

    @property
    def transfer_count(self) -> int:
        return self.transfers.total()

    def run(self, client: int) -> None:
        rng = random.Random(client)
        transport = httpx.HTTPTransport(local_address=f"127.0.1.{client + 1}")
        with httpx.Client(base_url=self.url, transport=transport, timeout=60) as http:
            while not self.stopping.is_set():
                self._round_trip(http, rng)

    def _round_trip(self, http: httpx.Client, rng: random.Random) -> None:
        bundle = rng.randbytes(rng.choice([100, 20_000, 20_000, 300_000, 6 * MIB]))
        proof = sign(KEY, bundle)
        hmac_header = {"X-HMAC": proof["X-HMAC"]} if rng.random() < 0.7 else {}
        upload = self._request(http, "POST", "/upload", 200, headers=hmac_header, content=bundle)
        if upload is None:
            return
        path = f"/files/{upload.text}"
        self.bundles[upload.text] = bundle
        whole = self._request(http, "GET", path, 200, headers=proof)
        part = self._request(http, "GET", path, 206, headers={**proof, "Range": "bytes=10-59"})
        self._request(http, "HEAD", path, 200, headers=proof)
        for response, expected in ((whole, bundle), (part, bundle[10:60])):
            if response is not None and response.content != expected:
                self.failures.append(f"GET: {len(response.content)} bytes of {len(expected)}")
        if rng.random() < 0.3:
            del self.bundles[upload.text]
            self._request(http, "DELETE", path, 204, headers=proof)

    def _request(
        self, http: httpx.Client, method: str, path: str, expected: int, **options: Any
    ) -> httpx.Response | None:
        # If a DELETE was interrupted, a 404 on the retry means that it had succeeded.
        for accepted in ({expected}, {expected, 404} if method == "DELETE" else {expected}):
            request_id = uuid4().hex
            options["headers"] = {**options["headers"], "X-Request-Id": request_id}
            try:
                response = http.request(method, path, **options)
            except httpx.TransportError as error:
                self.errors[request_id] = f"{method}: {error!r}"
                continue
            self.transfers[method] += 1
            if response.status_code in accepted:
                return response
            self.errors[request_id] = f"{method}: {response.status_code} {response.text[:200]}"
            # Without the delay, nginx may send a POST over an old connection to a killed replica.
            time.sleep(float(response.headers.get("Retry-After", 0)))
        self.failures.append(self.errors[request_id])
        return None


def replicas_of_request(output: Path, request_id: str) -> str:
    """Return the replicas that got a request, as nginx logs them."""
    line = re.compile(rf'"request_id":"{request_id}",.*"replica":"([^"]*)"')
    matches: list[str] = []

    def is_logged() -> bool:
        matches[:] = line.findall(output.read_text())
        return bool(matches)

    wait_until(is_logged)
    [replicas] = matches
    return replicas


def restart(replica: Replica, number: signal.Signals) -> None:
    """Stop a replica with this signal, and start it again."""
    replica.send_signal(number)
    code = replica.wait()
    assert number == signal.SIGKILL or code == 0
    replica.start()
    replica.wait_until_ready()


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    ("transfers", "kills"),
    [
        (200, 0),
        pytest.param(5000, 1, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_replicas_restart_in_turn_without_failed_requests(
    stack: Stack, output: Path, transfers: int, kills: int
) -> None:
    """Only transfers on a replica that is killed fail, and their retries succeed."""
    load = Load(stack.url)
    clients = 6
    with ThreadPoolExecutor(clients) as pool:
        load.clients += [pool.submit(load.run, client) for client in range(clients)]
        try:
            wait_for_transfers(load, transfers // 4)
            restart(stack.replicas[0], signal.SIGTERM)
            wait_for_transfers(load, transfers // 2)
            restart(stack.replicas[1], signal.SIGTERM)
            assert load.errors == {}
            if kills:
                wait_for_transfers(load, transfers * 3 // 4)
                restart(stack.replicas[0], signal.SIGKILL)
            wait_for_transfers(load, transfers)
        finally:
            load.stopping.set()
    for client in load.clients:
        client.result()
    print(f"\n{dict(load.transfers)}, bundles: {len(load.bundles)}, errors: {load.errors}")
    assert load.failures == []
    assert len(load.errors) <= clients * kills
    for request_id, error in load.errors.items():
        assert f":{stack.replicas[0].port}" in replicas_of_request(output, request_id), error
    with httpx.Client(base_url=stack.replicas[1].url, trust_env=False, timeout=60) as http:
        for bundle_id, bundle in load.bundles.items():
            response = http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert response.status_code == 200
            assert response.content == bundle


def wait_for_transfers(load: Load, transfers: int) -> None:
    deadline = time.monotonic() + 600
    while load.transfer_count < transfers:
        assert time.monotonic() < deadline
        assert not any(client.done() for client in load.clients)
        time.sleep(0.05)
