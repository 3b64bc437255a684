"""SIGTERM: a replica leaves, and no client notices."""

import asyncio
import hashlib
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import httpx
import pytest

from service.http.server import server
from tests.support.clients import load
from tests.support.clients.signing import sign
from tests.support.clients.sockets import begin_upload, dial, read_all
from tests.support.polling import until
from tests.support.services.process import TRACED, serving_bucket
from tests.support.services.thread import SMALL_PART
from tests.support.stores import Store
from tests.support.stores.buckets import (
    multipart_upload_keys,
    new_bucket,
    object_keys,
    stored_bundles,
)

KEY = load.KEY
BUNDLE = bytes(2 * SMALL_PART)


class Replica:
    """A service process of its own, and its bucket."""

    def __init__(self, url: str, process: Popen[str], bucket: str, s3: Any) -> None:
        self.url = url
        self.process = process
        self._bucket = bucket
        self._s3 = s3

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, verify=False)

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
        return begin_upload(self.url, BUNDLE[: declared // 2], declared)

    def uploads(self) -> list[str]:
        return multipart_upload_keys(self._s3, self._bucket)

    def left(self) -> list[str]:
        return [*object_keys(self._s3, self._bucket), *self.uploads()]

    def bundles(self) -> dict[str, tuple[bytes, dict[str, str]]]:
        """Body and tags of every object, by its id."""
        return stored_bundles(self._s3, self._bucket)


@pytest.fixture
def replica(store: Store, s3: Any, request: pytest.FixtureRequest) -> Iterator[Replica]:
    bucket = new_bucket(s3)
    settings = {"HISTORY_PART_SIZE": "5MiB", **request.param}
    with serving_bucket(store, bucket, **TRACED, **settings) as (url, process):
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
        time.sleep(server.LAST_REQUESTS + 0.3)
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


SLOW = 9.0
"""Seconds that a transfer takes: from before the signal until after the listener has closed."""

LONG = BUNDLE[: SMALL_PART + (1 << 20)]
SHORT = BUNDLE[:1000]


@pytest.mark.soak
@settings(drain_delay="5s")
def test_20_slow_uploads_and_20_slow_downloads_at_full_size(replica: Replica) -> None:
    """All end whole; for five seconds more are taken on, while no more should be sent."""
    answers, rounds = asyncio.run(leave_amid_transfers(replica))
    assert replica.process.wait(5) == 0
    bundles = replica.bundles()
    told = [answer.body.decode() for answer in answers if answer.body not in (LONG, SHORT)]
    print(f"\n{rounds} rounds of requests while draining; {len(bundles)} bundles in the bucket")
    assert [answer.status for answer in answers] == [200] * (41 + 2 * rounds)
    assert len(told) == 21 + rounds
    assert sorted(bundles) == sorted(told)
    assert not replica.uploads()
    for body, tags in bundles.values():
        assert tags["sha256"] == hashlib.sha256(body).hexdigest()
        assert body in (LONG, SHORT)
    assert rounds >= 5


async def leave_amid_transfers(replica: Replica) -> tuple[list[load.Answer], int]:
    """All answers there were, and how often they were asked for after the signal."""
    first = await load.upload(replica.url, LONG)
    bundle_id = first.body.decode()
    running = [
        asyncio.create_task(transfer)
        for _ in range(20)
        for transfer in (
            load.upload(replica.url, LONG, seconds=SLOW),
            load.download(replica.url, bundle_id, LONG, seconds=SLOW),
        )
    ]
    await asyncio.sleep(SLOW / 3)
    replica.process.send_signal(signal.SIGTERM)
    signalled, answers = time.monotonic(), [first]
    await asyncio.to_thread(until, lambda: replica.get("/readyz").status_code == 503)
    while time.monotonic() - signalled < 3.5:
        answers.append(await load.upload(replica.url, SHORT))
        answers.append(await load.download(replica.url, answers[-1].body.decode(), SHORT))
        answer = await asyncio.to_thread(replica.get, "/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert not any(task.done() for task in running)
    rounds = len(answers) // 2
    return [*answers, *await asyncio.gather(*running)], rounds
