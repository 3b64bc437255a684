"""Which requests nginx repeats at another replica."""

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

from tests.infra.nginx.front import Front, counted
from tests.infra.nginx.problems import problem
from tests.infra.nginx.standalone import get
from tests.infra.stack.nginx import balancer, find_nginx
from tests.infra.tools import installed
from tests.support.clients.signing import sign
from tests.support.clients.sockets import dial, read_all
from tests.support.polling import until
from tests.support.services.replicas import Replica
from tests.support.stores import free_ports

# The replicas are started once, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")
KEY = "a signing key"


def test_a_get_goes_on_at_the_other_replica(front: Front) -> None:
    bundle_id, proof = front.upload(b"bundle"), sign(KEY, b"bundle")
    front.stack.replicas[0].send(signal.SIGKILL)
    front.stack.replicas[0].wait()
    for _ in range(20):
        assert front.http.get(f"/files/{bundle_id}", headers=proof).content == b"bundle"
        assert front.upload(b"bundle"), "nothing of it was sent to the one that is gone"
    assert front.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    # And no log line tells whole ids.
    assert bundle_id[:8] in front.output.read_text()
    assert bundle_id not in front.output.read_text()


def test_a_get_that_was_sent_is_tried_again(front: Front) -> None:
    bundle_id = front.upload(b"bundle")
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, b"bundle").items())
    request = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{proof}\r\n"
    for answer in meanwhile_killed(front, request.encode()):
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\nbundle")


def test_a_post_that_was_sent_is_not(front: Front) -> None:
    """Also where nginx has all of its body, and could."""
    other = front.stack.replicas[0]
    before = counted(other, "received_bytes_total")
    request = b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answers = meanwhile_killed(front, request + b"Content-Length: 6\r\n\r\nbundle")
    statuses = Counter(int(answer.split()[1]) for answer in answers)
    assert statuses.keys() == {200, 502}
    assert counted(other, "received_bytes_total") == before + 6 * statuses[200]


def meanwhile_killed(front: Front, request: bytes) -> list[bytes]:
    """The answers to four requests at once, some of which reach a replica that hangs and dies."""
    hanging = front.stack.replicas[1]
    with ExitStack() as connections:
        with stopped(hanging):
            asked = [connections.enter_context(dial(front.url)) for _ in range(4)]
            for connection in asked:
                connection.sendall(request)
            time.sleep(0.5)
            hanging.send(signal.SIGKILL)
        return [read_all(connection) for connection in asked]


@contextmanager
def stopped(replica: Replica) -> Iterator[None]:
    replica.send(signal.SIGSTOP)
    try:
        yield
    finally:
        replica.send(signal.SIGCONT)


def test_a_post_that_has_begun_is_not_sent_twice(front: Front) -> None:
    with front.begin_upload() as connection:
        replica = front.busy()
        other = next(it for it in front.stack.replicas if it is not replica)
        before = counted(other, "received_bytes_total")
        replica.send(signal.SIGKILL)
        replica.wait()
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"\r\nRetry-After: 5\r\n" in head
    assert json.loads(body)["code"] == "bad_gateway"
    assert counted(other, "received_bytes_total") == before
    assert counted(other, "memory_used_bytes") == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_replica_that_has_come_back_is_asked_soon(tmp_path: Path, number: int) -> None:
    """Also where it is the only one, after many failures."""
    installed(find_nginx)
    ports = free_ports(2)
    with (
        (tmp_path / "output.log").open("ab") as log,
        balancer(ports, output=log) as nginx,
        httpx.Client(base_url=nginx.url, trust_env=False) as http,
    ):
        for _ in range(20):
            problem(http.get("/"), 502, "bad_gateway")
        with socket.create_server(("127.0.0.1", ports[number])) as behind:

            def asked() -> bool:
                with dial(nginx.url) as connection:
                    connection.sendall(get("/", None))
                    ready, _, _ = select.select([behind, connection], [], [], 5)
                    return behind in ready

            until(asked, seconds=3)
