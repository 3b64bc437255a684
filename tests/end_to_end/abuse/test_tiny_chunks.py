"""Bodies in thousands of tiny chunks."""

import os
import socket
import statistics
import time

import h11
import pytest

from tests.end_to_end.abuse.latency import summarize
from tests.end_to_end.abuse.requests import CHUNKED, LAST_REQUEST, UPLOAD, chunk, parse_responses
from tests.support.clients import load
from tests.support.clients.malicious import Attack, running_attacks
from tests.support.clients.signing import sign
from tests.support.clients.sockets import connect_to, read_until_closed
from tests.support.services.thread import Service

KEY = load.KEY


def test_flood_of_tiny_chunks_does_not_delay_others(service: Service) -> None:
    """One read can hold 43,000 chunks. No other client waits until all of them are parsed."""
    flood = "1\r\nx\r\n" * 5000
    times = list[float]()
    with running_attacks(
        service.url, Attack(2, (UPLOAD + CHUNKED).decode(), payload=flood, interval=0)
    ) as attackers:
        for _ in range(10):
            started = time.monotonic()
            assert service.http.get("/healthz").status_code == 200
            times.append(time.monotonic() - started)
        parse_time = measure_parsing(UPLOAD + CHUNKED, b"1\r\nx\r\n" * 43_000)
        [report] = attackers.stop()
    print(f"during {report.sent * 5000} chunks: {summarize(times)}")
    print(f"parsing one read takes {parse_time * 1e3:.1f} ms")
    assert report.sent
    assert statistics.median(times) < parse_time / 4


def measure_parsing(head: bytes, body: bytes) -> float:
    """Return the seconds that h11 needs for a body."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(head + body)
    started = time.monotonic()
    while server.next_event() is not h11.NEED_DATA:
        pass
    return time.monotonic() - started


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("count", [99, 100, 101, 5_000])
def test_upload_in_tiny_chunks_is_complete(
    service: Service, count: int, *, half_closed: bool
) -> None:
    """The whole bundle is stored, and the service reads the next request correctly."""
    bundle = os.urandom(count)
    with connect_to(service.url) as connection:
        chunks = b"".join(chunk(bundle[start : start + 1]) for start in range(count))
        next_request = b"" if half_closed else LAST_REQUEST
        connection.sendall(UPLOAD + CHUNKED + chunks + b"0\r\n\r\n" + next_request)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        responses = parse_responses(read_until_closed(connection))
    assert [status for status, _ in responses] == ([200] if half_closed else [200, 200])
    assert service.fetch(responses[0][1].decode(), sign(KEY, bundle)).content == bundle


def test_chunk_header_may_arrive_in_pieces(service: Service) -> None:
    """Any network may split a chunk header. The application reads once and waits for the rest."""
    started = time.monotonic()
    with connect_to(service.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (
            UPLOAD + CHUNKED,
            b"0",
            b"6",
            b"\r",
            b"\nbund",
            b"le\r\n0\r\n",
            b"\r\n" + LAST_REQUEST,
        ):
            connection.sendall(piece)
            time.sleep(0.05)  # The server has to get each piece in a read of its own.
        [(status, bundle_id), _] = parse_responses(read_until_closed(connection))
    assert status == 200
    assert service.fetch(bundle_id.decode(), sign(KEY, b"bundle")).content == b"bundle"
    assert time.monotonic() - started < 5
