"""nginx limits slow request heads, and the connections and requests of each client address."""

import re
import socket
import time
from contextlib import ExitStack

import httpx
import pytest

from tests.infra.nginx.gateway import BUNDLE
from tests.infra.nginx.problems import assert_problem
from tests.infra.nginx.standalone import TRUSTED, UNTRUSTED, StandaloneNginx, get_request
from tests.support.clients.sockets import connect_to, read_response, read_until_closed
from tests.support.polling import wait_until

# One worker runs all nginx tests: they share two replicas, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")


def test_incomplete_request_heads_reach_no_replica(standalone: StandaloneNginx) -> None:
    """Of 50 clients that send their request head byte by byte, only one completes it."""
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nX-HMAC: "
    with ExitStack() as connections:
        clients = [connections.enter_context(connect_to(standalone.url)) for _ in range(50)]
        for position in range(len(head)):
            for client in clients:
                client.sendall(head[position : position + 1])
        time.sleep(0.3)
        assert not standalone.forwarded()
        clients[0].sendall(b"\r\n\r\n")
        wait_until(standalone.forwarded)
        assert not standalone.forwarded()


@pytest.mark.soak
def test_slow_request_head_times_out(standalone: StandaloneNginx) -> None:
    with connect_to(standalone.url) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\n")
        started = time.monotonic()
        assert connection.recv(1) == b""
        assert 14 < time.monotonic() - started < 17


def test_concurrent_transfers_per_address_are_limited(standalone: StandaloneNginx) -> None:
    with ExitStack() as connections:
        for _ in range(128):
            connection = connections.enter_context(connect_to(standalone.url))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with httpx.Client(base_url=standalone.url, trust_env=False) as http:
            wait_until(lambda: http.get("/metrics").status_code == 404)
            assert_problem(http.post("/upload", content=BUNDLE), 429, "too_many_requests")
        other_address = httpx.HTTPTransport(local_address="127.0.0.9")
        with (
            httpx.Client(base_url=standalone.url, transport=other_address, timeout=0.5) as http,
            pytest.raises(httpx.ReadTimeout),  # nginx waits for the replica
        ):
            http.get("/")


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        (TRUSTED, "203.0.113.5", "203.0.113.5"),
        (TRUSTED, "2001:db8::5", "2001:db8::5"),
        # A proxy appends the address to the header that the client has sent.
        (TRUSTED, "198.51.100.7, 203.0.113.5", "203.0.113.5"),
        # Two proxies in a row.
        (TRUSTED, f"203.0.113.5, {TRUSTED}", "203.0.113.5"),
        (TRUSTED, f"203.0.113.5, {UNTRUSTED}", UNTRUSTED),
        (TRUSTED, None, TRUSTED),
        (TRUSTED, "nobody", TRUSTED),
        (UNTRUSTED, "203.0.113.5", UNTRUSTED),
        (UNTRUSTED, f"203.0.113.5, {TRUSTED}", UNTRUSTED),
    ],
)
def test_client_address_is_only_accepted_from_a_trusted_proxy(
    behind_proxy: StandaloneNginx, peer: str, forwarded_for: str | None, client: str
) -> None:
    """The log and the replicas get the same client address."""
    with connect_to(behind_proxy.url, peer) as connection:
        connection.sendall(get_request("/", forwarded_for, close=True))
        headers = behind_proxy.respond()
        assert read_until_closed(connection).startswith(b"HTTP/1.1 204 ")
    assert headers["X-Forwarded-For"] == client
    wait_until(lambda: f'"client":"{client}"' in behind_proxy.output.read_text())


def test_limits_apply_to_the_client_address_from_a_trusted_proxy(
    behind_proxy: StandaloneNginx,
) -> None:
    with ExitStack() as connections:

        def send_request(peer: str, forwarded_for: str) -> socket.socket:
            connection = connections.enter_context(connect_to(behind_proxy.url, peer))
            connection.sendall(get_request("/", forwarded_for))
            return connection

        for _ in range(128):
            send_request(TRUSTED, "203.0.113.5")
            connections.enter_context(behind_proxy.accept())
        refused = send_request(TRUSTED, "203.0.113.5")
        assert read_response(refused).startswith(b"HTTP/1.1 429 ")
        for peer, forwarded_for in ((TRUSTED, "203.0.113.6"), (UNTRUSTED, "203.0.113.5")):
            send_request(peer, forwarded_for)
            connections.enter_context(behind_proxy.accept())


def test_untrusted_client_cannot_evade_the_limits_with_other_addresses(
    behind_proxy: StandaloneNginx,
) -> None:
    with ExitStack() as connections:
        for number in range(129):
            connection = connections.enter_context(connect_to(behind_proxy.url, UNTRUSTED))
            connection.sendall(get_request("/", f"203.0.113.{number}"))
            if number < 128:
                connections.enter_context(behind_proxy.accept())
        assert read_response(connection).startswith(b"HTTP/1.1 429 ")


def test_request_rate_per_address_is_limited(standalone: StandaloneNginx) -> None:
    standalone.upstream.close()
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connect_to(standalone.url) as connection:
        connection.sendall(request * 899 + last)
        statuses = re.findall(rb"HTTP/1.1 (\d+)", read_until_closed(connection))
    assert len(statuses) == 900
    assert set(statuses[:500]) == {b"502"}
    assert set(statuses) == {b"502", b"429"}
    with httpx.Client(base_url=standalone.url, trust_env=False) as http:
        response = http.get("/healthz")
        while response.status_code == 429:
            assert_problem(response, 429, "too_many_requests")
            response = http.get("/healthz")
        assert_problem(response, 502, "bad_gateway")
