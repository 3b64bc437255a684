"""Clients that transfer bundles through nginx while replicas restart.

test_replicas.py uses it, and the tests of localstack.yml in containers.
"""

import random
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

from tests.support.clients.signing import sign

MIB = 1 << 20
KEY = "a signing key"


@dataclass
class Load:
    """Clients that upload, download in several ways, and delete, and record all errors.

    A failed request is retried once, after the time in Retry-After. Each client has its own
    address, because nginx has limits per address.
    """

    url: str
    pause: float = 0
    """Seconds that each client waits after its requests for one bundle."""
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
                self.stopping.wait(self.pause)

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


def wait_for_transfers(load: Load, transfers: int) -> None:
    deadline = time.monotonic() + 600
    while load.transfer_count < transfers:
        assert time.monotonic() < deadline
        assert not any(client.done() for client in load.clients)
        time.sleep(0.05)
