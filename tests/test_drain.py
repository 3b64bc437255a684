"""SIGTERM: a replica leaves, and no client notices."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any
from uuid import uuid4

import httpx
import pytest

from service import server
from tests.clients import dial, read_all, sign, until
from tests.conftest import SMALL_PART, aws_environment
from tests.stores import Store
from tests.test_cli import TRACED, serving

KEY = "a signing key"
BUNDLE = bytes(2 * SMALL_PART)


class Replica:
    """A service process of its own, and its bucket."""

    def __init__(self, url: str, process: Popen[str], bucket: str, s3: Any) -> None:
        self.url = url
        self.process = process
        self._bucket = bucket
        self._s3 = s3

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False)

    @property
    def gone(self) -> bool:
        """Whether it takes no more connections."""
        try:
            self.get("/healthz")
        except httpx.TransportError:
            return True
        return False

    def upload(self, declared: int = len(BUNDLE)) -> socket.socket:
        """An upload that has begun."""
        connection = dial(self.url)
        head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % declared
        connection.sendall(head + BUNDLE[: declared // 2])
        return connection

    def left(self) -> list[str]:
        objects = self._s3.list_objects_v2(Bucket=self._bucket).get("Contents", [])
        uploads = self._s3.list_multipart_uploads(Bucket=self._bucket).get("Uploads", [])
        return [found["Key"] for found in (*objects, *uploads)]


@pytest.fixture
def replica(store: Store, s3: Any, request: pytest.FixtureRequest) -> Iterator[Replica]:
    bucket = f"history-{uuid4()}"
    s3.create_bucket(Bucket=bucket)
    settings = {"HISTORY_BUCKET": bucket, "HISTORY_PART_SIZE": "5MiB", **request.param}
    with (
        aws_environment(store) as variables,
        serving(**TRACED, **settings, **variables) as (url, process, _),
    ):
        yield Replica(url, process, bucket, s3)


def settings(**variables: str) -> pytest.MarkDecorator:
    named = {f"HISTORY_{name.upper()}": value for name, value in variables.items()}
    return pytest.mark.parametrize("replica", [named], indirect=True, ids=[""])


@contextmanager
def promptly(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@settings(drain_delay="2s")
def test_nobody_notices(replica: Replica) -> None:
    """While it drains, new requests are served; then what runs is finished; then it exits."""
    bundle_id = httpx.post(f"{replica.url}/upload", content=BUNDLE, trust_env=False).text
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, BUNDLE).items())
    with replica.upload() as upload, dial(replica.url) as download, dial(replica.url) as late:
        get = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n"
        download.sendall(f"{get}{proof}\r\n".encode())
        received = download.recv(1000)
        replica.process.send_signal(signal.SIGTERM)
        until(lambda: replica.get("/readyz").status_code == 503)
        for path, status in (("/readyz", 503), ("/healthz", 200), ("/nowhere", 404)):
            answer = replica.get(path)
            assert (answer.status_code, answer.headers["Connection"]) == (status, "close")
        assert replica.get("/readyz").json()["code"] == "draining"
        answer = httpx.post(f"{replica.url}/upload", content=b"bundle", trust_env=False)
        assert answer.status_code == 200
        late.sendall(get.encode())

        until(lambda: replica.gone)
        time.sleep(server.LAST_CALL + 0.3)
        assert replica.process.poll() is None
        late.sendall(f"{proof}\r\n".encode())
        refused = read_all(late)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "draining"' in refused
        assert b"\r\nretry-after: " in refused.lower()
        upload.sendall(BUNDLE[len(BUNDLE) // 2 :])
        assert b"\r\nlocation: /files/" in read_all(upload)
        received += read_all(download)
        assert received.endswith(b"\r\n\r\n" + BUNDLE)
    assert replica.process.wait(5) == 0
    assert len(replica.left()) == 3


@settings(drain_delay="0s", drain_timeout="1s")
def test_what_does_not_finish_in_time_is_told_so_and_leaves_nothing(replica: Replica) -> None:
    with replica.upload(3 * len(BUNDLE)) as upload:
        until(lambda: len(replica.left()) == 1)
        replica.process.send_signal(signal.SIGTERM)
        answer = read_all(upload)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "draining"' in answer
        assert replica.process.wait(10) == 0
    assert not replica.left()


@settings(drain_delay="60s")
def test_a_second_signal_ends_at_once(replica: Replica) -> None:
    with replica.upload(), promptly(5):
        replica.process.send_signal(signal.SIGTERM)
        until(lambda: replica.get("/readyz").status_code == 503)
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(5) == 0


@settings(drain_delay="0s", drain_timeout="60s")
def test_a_second_signal_ends_at_once_what_is_waited_for(replica: Replica) -> None:
    with replica.upload(), promptly(8):
        replica.process.send_signal(signal.SIGTERM)
        until(lambda: replica.gone)
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(5) == 0
