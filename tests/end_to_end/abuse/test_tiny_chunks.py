"""Bodies in thousands of tiny chunks."""

import os
import socket
import statistics
import time

import h11
import pytest

from tests.end_to_end.abuse.latency import in_words
from tests.end_to_end.abuse.requests import CHUNKED, LAST, UPLOAD, chunk, parsed
from tests.support.clients import load
from tests.support.clients.malicious import Attack, attacking
from tests.support.clients.signing import sign
from tests.support.clients.sockets import dial, read_all
from tests.support.services.thread import Service

KEY = load.KEY


def test_neighbours_of_a_flood_of_tiny_chunks(service: Service) -> None:
    """One read holds 43,000 of them; nobody waits for as long as it takes to parse those."""
    flood = "1\r\nx\r\n" * 5000
    took = list[float]()
    with attacking(
        service.url, Attack(2, (UPLOAD + CHUNKED).decode(), byte=flood, every=0)
    ) as attackers:
        for _ in range(10):
            began = time.monotonic()
            assert service.http.get("/healthz").status_code == 200
            took.append(time.monotonic() - began)
        read = parsing(UPLOAD + CHUNKED, b"1\r\nx\r\n" * 43_000)
        [report] = attackers.stop()
    print(f"beside {report.sent * 5000} chunks: {in_words(took)}; a read: {read * 1e3:.1f} ms")
    assert report.sent
    assert statistics.median(took) < read / 4


def parsing(head: bytes, body: bytes) -> float:
    """Seconds that h11 takes over a body."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(head + body)
    began = time.monotonic()
    while server.next_event() is not h11.NEED_DATA:
        pass
    return time.monotonic() - began


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("count", [99, 100, 101, 5_000])
def test_a_bundle_in_tiny_chunks(service: Service, count: int, *, half_closed: bool) -> None:
    """All of it arrives, and what follows is the next request."""
    bundle = os.urandom(count)
    with dial(service.url) as connection:
        chunks = b"".join(chunk(bundle[at : at + 1]) for at in range(count))
        after = b"" if half_closed else LAST
        connection.sendall(UPLOAD + CHUNKED + chunks + b"0\r\n\r\n" + after)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        answers = parsed(read_all(connection))
    assert [status for status, _ in answers] == ([200] if half_closed else [200, 200])
    assert service.fetch(answers[0][1].decode(), sign(KEY, bundle)).content == bundle


def test_a_chunk_whose_head_comes_in_pieces(service: Service) -> None:
    """As any network may cut it; the application asked once and waits for the rest."""
    began = time.monotonic()
    with dial(service.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (
            UPLOAD + CHUNKED,
            b"0",
            b"6",
            b"\r",
            b"\nbund",
            b"le\r\n0\r\n",
            b"\r\n" + LAST,
        ):
            connection.sendall(piece)
            time.sleep(0.05)  # Each is to be a read of its own.
        [(status, bundle_id), _] = parsed(read_all(connection))
    assert status == 200
    assert service.fetch(bundle_id.decode(), sign(KEY, b"bundle")).content == b"bundle"
    assert time.monotonic() - began < 5
