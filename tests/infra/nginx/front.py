"""nginx in front of two replicas."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.infra.stack.deployment import Stack
from tests.support.clients.signing import sign
from tests.support.clients.sockets import begin_upload
from tests.support.polling import until
from tests.support.proxy import Proxy
from tests.support.services.metrics import metric_total
from tests.support.services.replicas import Replica

MIB = 1 << 20
KEY = "a signing key"
BUNDLE = bytes(range(256)) * (12 * MIB // 256)
PROOF = sign(KEY, BUNDLE)


@dataclass
class Front:
    """nginx, its replicas, and what lies behind and what comes out of them."""

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
        answer = self.http.post("/upload", content=content, headers=sign(KEY, content))
        assert answer.status_code == 200, answer.text
        return answer.text

    def begin_upload(self, declared: int = len(BUNDLE)) -> socket.socket:
        """An upload of which the half has been sent."""
        return begin_upload(self.url, BUNDLE[: declared // 2], declared)

    def reaches(self, new: Replica) -> bool:
        """Whether nginx asks it again: nobody else asks a replica that is new for this."""
        assert self.http.get("/healthz").status_code == 200
        return 'route="/healthz"' in httpx.get(f"{new.url}/metrics", trust_env=False).text

    def busy(self) -> Replica:
        """The replica that holds bytes of a bundle."""
        found: list[Replica] = []

        def look() -> bool:
            found[:] = [it for it in self.stack.replicas if counted(it, "memory_used_bytes") > 0]
            return bool(found)

        until(look)
        return found[0]


def counted(replica: Replica, metric: str) -> float:
    """The sum of a metric over its labels."""
    page = httpx.get(f"{replica.url}/metrics", trust_env=False).text
    return metric_total(page, metric)
