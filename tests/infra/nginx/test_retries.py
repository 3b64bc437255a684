"""Which requests nginx retries on the other replica."""

import json
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.infra.nginx.gateway import Gateway, metric_of
from tests.infra.nginx.problems import assert_problem
from tests.infra.nginx.standalone import get_request
from tests.infra.stack.nginx import find_nginx, running_nginx, upstream_of
from tests.infra.tools import find_or_skip
from tests.support.clients.signing import sign
from tests.support.clients.sockets import connect_to, read_until_closed
from tests.support.polling import wait_until
from tests.support.services.replicas import Replica
from tests.support.stores import free_ports

# One worker runs all nginx tests: they share two replicas, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")
KEY = "a signing key"


def test_requests_go_to_the_other_replica_after_one_has_died(gateway: Gateway) -> None:
    bundle_id, proof = gateway.upload(b"bundle"), sign(KEY, b"bundle")
    gateway.stack.replicas[0].send_signal(signal.SIGKILL)
    gateway.stack.replicas[0].wait()
    for _ in range(20):
        assert gateway.http.get(f"/files/{bundle_id}", headers=proof).content == b"bundle"
        assert gateway.upload(b"bundle"), "an upload that could not be sent was not retried"
    assert gateway.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    # No log line contains a whole bundle ID.
    assert bundle_id[:8] in gateway.output.read_text()
    assert bundle_id not in gateway.output.read_text()


def test_get_is_retried_if_the_replica_dies(gateway: Gateway) -> None:
    bundle_id = gateway.upload(b"bundle")
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, b"bundle").items())
    request = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{proof}\r\n"
    for response in send_while_a_replica_dies(gateway, request.encode()):
        assert response.startswith(b"HTTP/1.1 200 ")
        assert response.endswith(b"\r\n\r\nbundle")


def test_post_is_not_retried_if_the_replica_dies(gateway: Gateway) -> None:
    """Not even if nginx already has the whole body and could send it again."""
    survivor = gateway.stack.replicas[0]
    before = metric_of(survivor, "received_bytes_total")
    request = b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    responses = send_while_a_replica_dies(gateway, request + b"Content-Length: 6\r\n\r\nbundle")
    statuses = Counter(int(response.split()[1]) for response in responses)
    assert statuses.keys() == {200, 502}
    assert metric_of(survivor, "received_bytes_total") == before + 6 * statuses[200]


def send_while_a_replica_dies(gateway: Gateway, request: bytes) -> list[bytes]:
    """Send four requests at once, some of them to a replica that hangs and then dies.

    Returns the responses.
    """
    hanging = gateway.stack.replicas[1]
    with ExitStack() as stack:
        with paused(hanging):
            connections = [stack.enter_context(connect_to(gateway.url)) for _ in range(4)]
            for connection in connections:
                connection.sendall(request)
            time.sleep(0.5)
            hanging.send_signal(signal.SIGKILL)
        return [read_until_closed(connection) for connection in connections]


@contextmanager
def paused(replica: Replica) -> Iterator[None]:
    replica.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        replica.send_signal(signal.SIGCONT)


def test_partially_sent_post_is_not_retried(gateway: Gateway) -> None:
    with gateway.begin_upload() as connection:
        replica = gateway.busy_replica()
        survivor = next(other for other in gateway.stack.replicas if other is not replica)
        before = metric_of(survivor, "received_bytes_total")
        replica.send_signal(signal.SIGKILL)
        replica.wait()
        head, _, body = read_until_closed(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"\r\nRetry-After: 5\r\n" in head
    assert json.loads(body)["code"] == "bad_gateway"
    assert metric_of(survivor, "received_bytes_total") == before
    assert metric_of(survivor, "memory_used_bytes") == 0


@pytest.mark.parametrize("number", [0, 1])
def test_recovered_replica_gets_requests_soon(tmp_path: Path, number: int) -> None:
    """Even if it is the only one, and after many failures."""
    find_or_skip(find_nginx)
    ports = free_ports(2)
    with (
        (tmp_path / "output.log").open("ab") as log,
        running_nginx(upstream_of(ports), output=log) as nginx,
        httpx.Client(base_url=nginx.url, trust_env=False) as http,
    ):
        for _ in range(20):
            assert_problem(http.get("/"), 502, "bad_gateway")
        with socket.create_server(("127.0.0.1", ports[number])) as replica:

            def gets_a_request() -> bool:
                with connect_to(nginx.url) as connection:
                    connection.sendall(get_request("/", None))
                    ready, _, _ = select.select([replica, connection], [], [], 5)
                    return replica in ready

            wait_until(gets_a_request, timeout=3)
