"""nginx in front of two replicas."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.infra.stack.deployment import Stack
from tests.support.clients.signing import sign
from tests.support.clients.sockets import begin_upload
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.services.metrics import metric_total
from tests.support.services.replicas import Replica

MIB = 1 << 20
KEY = "a signing key"
BUNDLE = bytes(range(256)) * (12 * MIB // 256)
PROOF = sign(KEY, BUNDLE)


@dataclass
class Gateway:
    """nginx and two replicas, with a client, a proxy in front of their store, and their log."""

    stack: Stack
    http: httpx.Client
    store: Proxy
    s3: Any
    bucket: str
    output: Path

    @property
    def url(self) -> str:
        return self.stack.url

    def upload(self, content: bytes = BUNDLE) -> str:
        response = self.http.post("/upload", content=content, headers=sign(KEY, content))
        assert response.status_code == 200, response.text
        return response.text

    def begin_upload(self, declared: int = len(BUNDLE)) -> socket.socket:
        """Send half of an upload."""
        return begin_upload(self.url, BUNDLE[: declared // 2], declared)

    def reaches(self, replica: Replica) -> bool:
        """Send a health check. Return whether a restarted replica has got one from nginx.

        The metrics of the replica count only requests since its restart, and only nginx sends
        health checks to it.
        """
        assert self.http.get("/healthz").status_code == 200
        return 'route="/healthz"' in httpx.get(f"{replica.url}/metrics", trust_env=False).text

    def busy_replica(self) -> Replica:
        """Wait until a replica has bytes of a bundle in memory, and return it."""
        busy: list[Replica] = []

        def is_one_busy() -> bool:
            busy[:] = [
                replica
                for replica in self.stack.replicas
                if metric_of(replica, "memory_used_bytes") > 0
            ]
            return bool(busy)

        wait_until(is_one_busy)
        return busy[0]


def metric_of(replica: Replica, metric: str) -> float:
    """Return the sum of a metric over its labels."""
    page = httpx.get(f"{replica.url}/metrics", trust_env=False).text
    return metric_total(page, metric)
