"""Requests that are sent ahead of their answers."""

import select
import socket
import time
from contextlib import suppress
from uuid import uuid4

import pytest

from service.http import slow_clients
from tests.end_to_end.abuse.requests import CHUNKED, LAST, UPLOAD, chunk, parsed
from tests.support.clients import load
from tests.support.clients.signing import sign
from tests.support.clients.sockets import dial, raw_request, read_all, read_answer, server_peers
from tests.support.marks import needs_proc
from tests.support.polling import until
from tests.support.services.thread import Service

KEY = load.KEY
MIB = 1 << 20


def test_requests_sent_ahead_are_answered_in_order(service: Service) -> None:
    """None is read as a part of another's body, whatever that looks like, nor a trailer as more."""
    inside = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    trailers = b"Content-Length: 99\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    answers = parsed(
        raw_request(
            service.url,
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
            + b"%bContent-Length: %d\r\n\r\n%b" % (UPLOAD, len(inside), inside)
            + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
            + UPLOAD
            + CHUNKED
            + chunk(inside)
            + b"0\r\n"
            + trailers
            + b"\r\n"
            + LAST
            + inside,
        )
    )
    assert [status for status, _ in answers] == [404, 200, 200, 200, 200]
    assert answers[-1][1] == b"alive\n"
    for _, bundle_id in (answers[1], answers[3]):
        assert service.fetch(bundle_id.decode(), sign(KEY, inside)).content == inside


def test_a_preflight_with_a_body_is_not_waited_for(service: Service) -> None:
    """CORS answers it, and nobody reads its body."""
    began = time.monotonic()
    with dial(service.url) as connection:
        connection.sendall(
            b"OPTIONS /upload HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n"
            b"Access-Control-Request-Method: POST\r\nContent-Length: 99\r\n\r\n"
        )
        answer = read_answer(connection)
        connection.sendall(b"some")
        read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\naccess-control-allow-origin: *\r\n" in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert time.monotonic() - began < slow_clients.DISCARD_TIMEOUT + 3


def test_requests_sent_ahead_wait_at_their_client(service: Service) -> None:
    """No more of them is read than is answered, beside what the kernels hold.

    What is sent ahead of a request is also not read while it asks S3 and watches for a hang-up.
    """
    proof = b"X-HMAC: %b\r\nX-SIGNING-KEY: k\r\n" % (b"0" * 64)
    request = b"GET /files/%b HTTP/1.1\r\nHost: x\r\n%b\r\n"
    request = request % (str(uuid4()).encode(), proof) * 50
    sent, answers = 0, bytearray()
    with dial(service.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        connection.settimeout(0)
        piece = memoryview(request)
        while answers.count(b"HTTP/1.1 404") < 200:
            readable, writable, _ = select.select([connection], [connection], [], 10)
            assert readable or writable
            if readable:
                answers += connection.recv(65_536)
            if writable:
                taken = connection.send(piece)
                sent += taken
                piece = piece[taken:] or memoryview(request)
    print(f"{sent / MIB:.1f} MiB sent for 200 answers")
    assert sent < 2 * MIB


@needs_proc
def test_who_sends_ahead_and_never_reads_is_dropped(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reckoned from the last answer: before it, a thousand more take as long as they take."""
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
        until(lambda: port not in server_peers(service.url))
    answers = [
        record.created for record in caplog.records if record.name == "service.http.access_log"
    ]
    waited = time.time() - answers[-2]  # The last one was cut.
    print(f"dropped after {sent >> 10} KiB, {len(answers)} answers, and {waited:.2f} s")
    assert sent < 16 * MIB
    assert waited < 10
