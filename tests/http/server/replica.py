"""A service that runs as its own process, for tests of its shutdown."""

import socket
from subprocess import Popen
from typing import Any

import httpx
import pytest

from tests.support.clients.sockets import begin_chunked_upload, begin_upload
from tests.support.services.metrics import metric_total
from tests.support.services.thread import SMALL_PART
from tests.support.stores.buckets import multipart_upload_keys, object_keys, stored_bundles

BUNDLE = bytes(2 * SMALL_PART)


class Replica:
    """A service that runs as its own process, and its bucket."""

    def __init__(self, url: str, process: Popen[str], bucket: str, s3: Any) -> None:
        self.url = url
        self.process = process
        self._bucket = bucket
        self._s3 = s3

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, verify=False)

    @property
    def refuses_connections(self) -> bool:
        try:
            self.get("/healthz")
        except httpx.TransportError:
            return True
        return False

    def begin_upload(self, declared: int = len(BUNDLE), *, chunked: bool = False) -> socket.socket:
        """Send the head of a page's upload of `declared` bytes, and the first half of its body."""
        headers, half = b"Origin: https://app.example\r\n", BUNDLE[: declared // 2]
        if chunked:
            return begin_chunked_upload(self.url, half, headers)
        return begin_upload(self.url, half, declared, headers)

    @property
    def memory_in_use(self) -> float:
        """Bytes of all memory pools together."""
        return metric_total(self.get("/metrics").text, "memory_used_bytes")

    def multipart_uploads(self) -> list[str]:
        return multipart_upload_keys(self._s3, self._bucket)

    def all_keys(self) -> list[str]:
        """Return the keys of all objects and all multipart uploads."""
        return [*object_keys(self._s3, self._bucket), *self.multipart_uploads()]

    def bundles(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Return the body and the tags of every object, by the bundle's id."""
        return stored_bundles(self._s3, self._bucket)


def settings(**variables: str) -> pytest.MarkDecorator:
    environment = {f"HISTORY_{name.upper()}": value for name, value in variables.items()}
    return pytest.mark.parametrize("replica", [environment], indirect=True, ids=[""])
