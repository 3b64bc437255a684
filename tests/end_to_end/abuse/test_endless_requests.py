"""Requests that never end, or that are longer than their declared length."""

import select
import socket
import threading
import time
from contextlib import suppress
from itertools import repeat

import h11
import pytest

from service.http import slow_clients
from tests.end_to_end.abuse.latency import measure_latencies, summarize
from tests.end_to_end.abuse.requests import (
    CHUNKED,
    FORM,
    UPLOAD,
    chunk,
    parse_responses,
    send_until_response,
)
from tests.support.clients import load
from tests.support.clients.signing import sign
from tests.support.clients.sockets import connect_to, problem_code, raw_request, read_response
from tests.support.polling import wait_until
from tests.support.services.thread import Service

KEY = load.KEY
MIB = 1 << 20


ENDLESS_REQUESTS = {
    "header": (b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: ", b"x" * 4096, None),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: x\r\n" * 700, None),
    "trailers": (UPLOAD + CHUNKED + chunk(b"bundle") + b"0\r\n", b"X: x\r\n" * 700, None),
    "chunk extension": (UPLOAD + CHUNKED + b"6;", b"x" * 4096, None),
    "preamble": (UPLOAD + FORM + CHUNKED, chunk(b"\r\n" * 4096), b"malformed_form"),
    "form header": (
        UPLOAD + FORM + CHUNKED + chunk(b"--b\r\nX-Endless: "),
        chunk(b"x" * 4096),
        b"malformed_form",
    ),
    "form parts": (
        UPLOAD + FORM + CHUNKED,
        chunk(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 50),
        b"malformed_form",
    ),
    "epilogue": (
        UPLOAD
        + FORM
        + CHUNKED
        + chunk(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'),
        chunk(b"x" * 4096),
        b"malformed_form",
    ),
}


@pytest.mark.parametrize("name", ENDLESS_REQUESTS)
def test_endless_request_is_ended(service: Service, name: str) -> None:
    """The service reads about 64 KiB, not counting the kernel's buffers, and stores nothing."""
    service.delete_objects()
    beginning, piece, code = ENDLESS_REQUESTS[name]
    started = time.monotonic()
    with connect_to(service.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        connection.sendall(beginning)
        sent = send_until_response(connection, repeat(piece))
        response = b""
        with suppress(ConnectionResetError, h11.RemoteProtocolError):
            response = read_response(connection)
    print(f"ended after {sent >> 10} KiB and {time.monotonic() - started:.2f} s")
    assert sent < 16 * MIB
    if code is None:
        assert response[:10] in {b"", b"HTTP/1.1 4"}
    else:
        assert problem_code(response) == code
    wait_until(lambda: not service.objects() and not service.multipart_uploads())


def test_data_after_the_declared_length_is_not_stored(service: Service) -> None:
    """The declared bytes are the bundle. The rest is not a request, so the connection ends."""
    [upload, trailing_data] = parse_responses(
        raw_request(service.url, UPLOAD + b"Content-Length: 6\r\n\r\nbundle and what follows\r\n")
    )
    assert (upload[0], trailing_data[0]) == (200, 400)
    assert service.fetch(upload[1].decode(), sign(KEY, b"bundle")).content == b"bundle"


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"X-HMAC: 1\r\nContent-Length: 10000000000\r\n\r\n", b"malformed_header"),
        (b"Content-Length: 10000000000\r\n\r\n", b"bundle_too_large"),
    ],
)
def test_early_responses_arrive_whole_and_do_not_delay_others(
    service: Service, head: bytes, code: bytes
) -> None:
    """20 of 20 clients get the response, although they send 4 MiB more before they read it."""
    stop = threading.Event()
    times = list[float]()

    def measure_other_client() -> None:
        while not stop.is_set():
            times.extend(measure_latencies(service.url, count=2))

    thread = threading.Thread(target=measure_other_client)
    thread.start()
    try:
        for _ in range(20):
            with connect_to(service.url) as connection:
                connection.sendall(UPLOAD + head)
                assert select.select([connection], [], [], 2)[0], "the service waits for the body"
                for _ in range(4):
                    connection.sendall(bytes(MIB))
                assert problem_code(read_response(connection)) == code
    finally:
        stop.set()
        thread.join(20)
    print(f"other clients: {summarize(times)}, longest {max(times) * 1e3:.1f} ms")
    assert max(times) < slow_clients.DISCARD_TIMEOUT
