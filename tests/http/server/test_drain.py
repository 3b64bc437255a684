"""Graceful shutdown: after SIGTERM, a replica completes its requests and then ends."""

import asyncio
import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from service.bundles.memory import Memory
from service.drain import Drain
from service.http.server import server
from service.http.server.listener import listen
from tests.http.server.replica import BUNDLE, Replica, settings
from tests.support.clients import load
from tests.support.clients.signing import sign
from tests.support.clients.sockets import connect_to, read_until_closed
from tests.support.polling import wait_until
from tests.support.services.thread import SMALL_PART

KEY = load.KEY


@settings(drain_delay="2s")
def test_running_transfers_are_completed_before_the_process_ends(replica: Replica) -> None:
    """The replica also serves new requests during the drain delay."""
    bundle_id = httpx.post(f"{replica.url}/upload", content=BUNDLE, trust_env=False).text
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, BUNDLE).items())
    with (
        replica.begin_upload() as upload,
        connect_to(replica.url) as download,
        connect_to(replica.url) as last,
    ):
        get = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n"
        download.sendall(f"{get}{proof}\r\n".encode())
        received = download.recv(1000)
        replica.process.send_signal(signal.SIGTERM)
        wait_until(lambda: replica.get("/readyz").status_code == 503)
        for path, status in (("/readyz", 503), ("/healthz", 200), ("/nowhere", 404)):
            response = replica.get(path)
            assert (response.status_code, response.headers["Connection"]) == (status, "close")
        assert replica.get("/readyz").json()["code"] == "draining"
        response = httpx.post(f"{replica.url}/upload", content=b"bundle", trust_env=False)
        assert response.status_code == 200
        last.sendall(get.encode())

        wait_until(lambda: replica.refuses_connections)
        time.sleep(server.LAST_REQUESTS + 0.3)
        assert replica.process.poll() is None
        last.sendall(f"{proof}\r\n".encode())
        refused = read_until_closed(last)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "draining"' in refused
        assert b"\r\nretry-after: " in refused.lower()
        upload.sendall(BUNDLE[len(BUNDLE) // 2 :])
        assert b"\r\nlocation: /files/" in read_until_closed(upload)
        received += read_until_closed(download)
        assert received.endswith(b"\r\n\r\n" + BUNDLE)
    assert replica.process.wait(5) == 0
    assert len(replica.all_keys()) == 3


@settings(drain_delay="0s", drain_timeout="1s")
@pytest.mark.parametrize("chunked", [False, True])
def test_upload_that_exceeds_the_drain_timeout_gets_503_and_is_removed(
    replica: Replica, *, chunked: bool
) -> None:
    with replica.begin_upload(3 * len(BUNDLE), chunked=chunked) as upload:
        wait_until(lambda: len(replica.all_keys()) == chunked)
        wait_until(lambda: replica.memory_in_use > 0)
        replica.process.send_signal(signal.SIGTERM)
        response = read_until_closed(upload)
        assert response.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "draining"' in response
        assert b"\r\naccess-control-allow-origin: *\r\n" in response
        assert replica.process.wait(10) == 0
    assert not replica.all_keys()


@settings(drain_delay="0s", drain_timeout="1s")
def test_client_that_goes_on_sending_gets_the_whole_response(replica: Replica) -> None:
    """Closing the connection with unread data would reset it. The client reads a second later."""
    with replica.begin_upload(3 * len(BUNDLE)) as upload:
        replica.process.send_signal(signal.SIGTERM)
        while not select.select([upload], [], [], 0.01)[0]:
            upload.sendall(b"1000")
        for _ in range(50):
            upload.sendall(b"1000")
            time.sleep(0.02)
        response = b""
        while b"\r\n\r\n" not in response or not response.endswith(b"}"):
            response += (received := upload.recv(1000))
            assert received
        assert response.startswith(b"HTTP/1.1 503 ")
    assert replica.process.wait(5) == 0
    assert not replica.all_keys()


SLOW = 9.0
"""Seconds of a transfer that starts before the signal and ends after the listener has closed."""

LONG = BUNDLE[: SMALL_PART + (1 << 20)]
SHORT = BUNDLE[:1000]


@pytest.mark.soak
@settings(drain_delay="5s")
def test_20_slow_uploads_and_20_slow_downloads_complete_during_shutdown(replica: Replica) -> None:
    """New requests are served too, for the five seconds in which load balancers may send them."""
    responses, rounds = asyncio.run(shut_down_during_transfers(replica))
    assert replica.process.wait(5) == 0
    bundles = replica.bundles()
    ids = [response.body.decode() for response in responses if response.body not in (LONG, SHORT)]
    print(f"\n{rounds} rounds of requests while draining; {len(bundles)} bundles in the bucket")
    assert [response.status for response in responses] == [200] * (41 + 2 * rounds)
    assert len(ids) == 21 + rounds
    assert sorted(bundles) == sorted(ids)
    assert not replica.multipart_uploads()
    for body, tags in bundles.values():
        assert "expires-at" in tags
        assert body in (LONG, SHORT)
    assert rounds >= 5


async def shut_down_during_transfers(replica: Replica) -> tuple[list[load.Response], int]:
    """Return all responses, and the number of rounds of requests after the signal."""
    first = await load.upload(replica.url, LONG)
    bundle_id = first.body.decode()
    running = [
        asyncio.create_task(transfer)
        for _ in range(20)
        for transfer in (
            load.upload(replica.url, LONG, duration=SLOW),
            load.download(replica.url, bundle_id, LONG, duration=SLOW),
        )
    ]
    await asyncio.sleep(SLOW / 3)
    replica.process.send_signal(signal.SIGTERM)
    signalled_at, responses = time.monotonic(), [first]
    await asyncio.to_thread(wait_until, lambda: replica.get("/readyz").status_code == 503)
    while time.monotonic() - signalled_at < 3.5:
        responses.append(await load.upload(replica.url, SHORT))
        responses.append(await load.download(replica.url, responses[-1].body.decode(), SHORT))
        readiness = await asyncio.to_thread(replica.get, "/readyz")
        assert (readiness.status_code, readiness.json()["code"]) == (503, "draining")
    assert not any(task.done() for task in running)
    rounds = len(responses) // 2
    return [*responses, *await asyncio.gather(*running)], rounds


@pytest.mark.parametrize("failure", [errno.EMFILE, errno.ECONNABORTED])
def test_shutdown_completes_although_no_more_connections_can_be_accepted(failure: int) -> None:
    """The request responds after the attempt to accept them."""
    started, responding, attempted = threading.Event(), threading.Event(), asyncio.Event()
    steps = list[str]()

    class FullListener(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            attempted.set()
            raise OSError(failure, os.strerror(failure))

    async def respond(_: Request) -> PlainTextResponse:
        responding.set()
        await attempted.wait()
        steps.append("response")
        return PlainTextResponse("complete")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"memory": Memory(2 * SMALL_PART, part_size=SMALL_PART, timeout=1)}
        steps.append("end of the lifespan")

    with FullListener(fileno=listen("127.0.0.1", 0).detach()) as listener:
        full_server = server.Server(
            Starlette(routes=[Route("/", respond)], lifespan=lifespan),
            listener,
            Drain(),
            drain_delay=1,
            drain_timeout=10,
            read_timeout=10,
            ready=started.set,
        )
        thread = threading.Thread(target=full_server.run, daemon=True)
        thread.start()
        assert started.wait(20)
        with connect_to(f"http://127.0.0.1:{listener.getsockname()[1]}") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert responding.wait(20)
            full_server.should_exit = True
            response = read_until_closed(connection)
        thread.join(30)
    assert not thread.is_alive()
    assert response.endswith(b"complete")
    assert steps == ["response", "end of the lifespan"]
