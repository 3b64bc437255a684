"""nginx limits slow heads, connections and requests, by client address."""

import re
import socket
import time
from contextlib import ExitStack

import httpx
import pytest

from tests.infra.nginx.front import BUNDLE
from tests.infra.nginx.problems import problem
from tests.infra.nginx.standalone import STRANGER, TRUSTED, Alone, get
from tests.support.clients.sockets import dial, read_all, read_answer
from tests.support.polling import until

# The replicas are started once, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")


def test_slow_heads_reach_no_replica(alone: Alone) -> None:
    """50 clients that drip their heads; the one that gets to its end comes through."""
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nX-HMAC: "
    with ExitStack() as connections:
        slow = [connections.enter_context(dial(alone.url)) for _ in range(50)]
        for at in range(len(head)):
            for connection in slow:
                connection.sendall(head[at : at + 1])
        time.sleep(0.3)
        assert not alone.reached()
        slow[0].sendall(b"\r\n\r\n")
        until(alone.reached)
        assert not alone.reached()


@pytest.mark.soak
def test_slow_heads_are_cut_in_time(alone: Alone) -> None:
    with dial(alone.url) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert 14 < time.monotonic() - began < 17


def test_more_transfers_at_once_than_one_address_may(alone: Alone) -> None:
    with ExitStack() as connections:
        for _ in range(128):
            connection = connections.enter_context(dial(alone.url))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with httpx.Client(base_url=alone.url, trust_env=False) as http:
            until(lambda: http.get("/metrics").status_code == 404)
            problem(http.post("/upload", content=BUNDLE), 429, "too_many_requests")
        others = httpx.HTTPTransport(local_address="127.0.0.9")
        with (
            httpx.Client(base_url=alone.url, transport=others, timeout=0.5) as http,
            pytest.raises(httpx.ReadTimeout),  # it waits for the replica
        ):
            http.get("/")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        (TRUSTED, "203.0.113.5", "203.0.113.5"),
        (TRUSTED, "2001:db8::5", "2001:db8::5"),
        # What the client had written itself stands before what the proxy adds.
        (TRUSTED, "198.51.100.7, 203.0.113.5", "203.0.113.5"),
        # Two proxies, one behind the other.
        (TRUSTED, f"203.0.113.5, {TRUSTED}", "203.0.113.5"),
        (TRUSTED, f"203.0.113.5, {STRANGER}", STRANGER),
        (TRUSTED, None, TRUSTED),
        (TRUSTED, "nobody", TRUSTED),
        (STRANGER, "203.0.113.5", STRANGER),
        (STRANGER, f"203.0.113.5, {TRUSTED}", STRANGER),
    ],
)
def test_the_client_is_whom_a_trusted_proxy_names(
    trusting: Alone, peer: str, forwarded: str | None, client: str
) -> None:
    """In the log, and for the replicas."""
    with dial(trusting.url, peer) as connection:
        connection.sendall(get("/", forwarded, close=True))
        fields = trusting.answer()
        assert read_all(connection).startswith(b"HTTP/1.1 204 ")
    assert fields["X-Forwarded-For"] == client
    until(lambda: f'"client":"{client}"' in trusting.output.read_text())


def test_the_limits_are_those_of_the_client_that_a_trusted_proxy_names(trusting: Alone) -> None:
    with ExitStack() as connections:

        def ask(peer: str, forwarded: str) -> socket.socket:
            connection = connections.enter_context(dial(trusting.url, peer))
            connection.sendall(get("/", forwarded))
            return connection

        for _ in range(128):
            ask(TRUSTED, "203.0.113.5")
            connections.enter_context(trusting.take())
        assert read_answer(ask(TRUSTED, "203.0.113.5")).startswith(b"HTTP/1.1 429 ")
        for peer, forwarded in ((TRUSTED, "203.0.113.6"), (STRANGER, "203.0.113.5")):
            ask(peer, forwarded)
            connections.enter_context(trusting.take())


def test_no_stranger_escapes_the_limits_by_other_names(trusting: Alone) -> None:
    with ExitStack() as connections:
        for number in range(129):
            connection = connections.enter_context(dial(trusting.url, STRANGER))
            connection.sendall(get("/", f"203.0.113.{number}"))
            if number < 128:
                connections.enter_context(trusting.take())
        assert read_answer(connection).startswith(b"HTTP/1.1 429 ")


def test_more_requests_than_one_address_may(alone: Alone) -> None:
    alone.behind.close()
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with dial(alone.url) as connection:
        connection.sendall(request * 899 + last)
        answers = re.findall(rb"HTTP/1.1 (\d+)", read_all(connection))
    assert len(answers) == 900
    assert set(answers[:500]) == {b"502"}
    assert set(answers) == {b"502", b"429"}
    with httpx.Client(base_url=alone.url, trust_env=False) as http:
        answer = http.get("/healthz")
        while answer.status_code == 429:
            problem(answer, 429, "too_many_requests")
            answer = http.get("/healthz")
        problem(answer, 502, "bad_gateway")
