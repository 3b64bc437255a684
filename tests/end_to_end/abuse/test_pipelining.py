"""Pipelining: requests that are sent before the response to an earlier one has arrived."""

import select
import socket
import time
from contextlib import suppress
from uuid import uuid4

import pytest

from service.http import slow_clients
from tests.end_to_end.abuse.requests import CHUNKED, LAST_REQUEST, UPLOAD, chunk, parse_responses
from tests.support.clients import load
from tests.support.clients.signing import sign
from tests.support.clients.sockets import (
    connect_to,
    connected_ports,
    raw_request,
    read_response,
    read_until_closed,
)
from tests.support.marks import needs_proc
from tests.support.polling import wait_until
from tests.support.services.thread import Service

KEY = load.KEY
MIB = 1 << 20


def test_pipelined_requests_get_responses_in_order(service: Service) -> None:
    """A body that looks like a request stays a body, and a trailer never becomes a header."""
    embedded_request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    trailers = b"Content-Length: 99\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    responses = parse_responses(
        raw_request(
            service.url,
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
            + b"%bContent-Length: %d\r\n\r\n%b" % (UPLOAD, len(embedded_request), embedded_request)
            + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
            + UPLOAD
            + CHUNKED
            + chunk(embedded_request)
            + b"0\r\n"
            + trailers
            + b"\r\n"
            + LAST_REQUEST
            + embedded_request,
        )
    )
    assert [status for status, _ in responses] == [404, 200, 200, 200, 200]
    assert responses[-1][1] == b"alive\n"
    for _, bundle_id in (responses[1], responses[3]):
        assert (
            service.fetch(bundle_id.decode(), sign(KEY, embedded_request)).content
            == embedded_request
        )


def test_preflight_response_does_not_wait_for_a_body(service: Service) -> None:
    """The CORS middleware sends the response, and the application never reads the body."""
    started = time.monotonic()
    with connect_to(service.url) as connection:
        connection.sendall(
            b"OPTIONS /upload HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n"
            b"Access-Control-Request-Method: POST\r\nContent-Length: 99\r\n\r\n"
        )
        response = read_response(connection)
        connection.sendall(b"some")
        read_until_closed(connection)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"\r\naccess-control-allow-origin: *\r\n" in response
    assert b"\r\nconnection: close\r\n" in response
    assert time.monotonic() - started < slow_clients.DISCARD_TIMEOUT + 3


def test_pipelined_requests_are_not_read_early(service: Service) -> None:
    """The service reads only as many requests as it responds to, apart from the kernel's buffers.

    While a request waits for S3 and watches for a disconnect, the service reads none that follow.
    """
    proof = b"X-HMAC: %b\r\nX-SIGNING-KEY: k\r\n" % (b"0" * 64)
    request = b"GET /files/%b HTTP/1.1\r\nHost: x\r\n%b\r\n"
    request = request % (str(uuid4()).encode(), proof) * 50
    sent, responses = 0, bytearray()
    with connect_to(service.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        connection.settimeout(0)
        piece = memoryview(request)
        while responses.count(b"HTTP/1.1 404") < 200:
            readable, writable, _ = select.select([connection], [connection], [], 10)
            assert readable or writable
            if readable:
                responses += connection.recv(65_536)
            if writable:
                size = connection.send(piece)
                sent += size
                piece = piece[size:] or memoryview(request)
    print(f"{sent / MIB:.1f} MiB sent for 200 responses")
    assert sent < 2 * MIB


@needs_proc
def test_client_that_pipelines_but_never_reads_is_disconnected(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The timeout counts from the last response. The thousand responses before may take long."""
    monkeypatch.setattr(slow_clients, "GRACE_PERIOD", 1.0)
    sent = 0
    with caplog.at_level("INFO", "service.http.access_log"), socket.socket() as connection:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, 16 * 1024)
        connection.connect(("127.0.0.1", int(service.url.rsplit(":", 1)[1])))
        connection.settimeout(60)
        port = connection.getsockname()[1]
        with suppress(ConnectionError):
            while True:
                sent += connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        wait_until(lambda: port not in connected_ports(service.url))
    response_times = [
        record.created for record in caplog.records if record.name == "service.http.access_log"
    ]
    waited = time.time() - response_times[-2]  # The last response was cut.
    print(f"dropped after {sent >> 10} KiB, {len(response_times)} responses, and {waited:.2f} s")
    assert sent < 16 * MIB
    assert waited < 10
