"""The server through raw sockets: timeouts, half-closed connections and invalid requests."""

import socket
import time
from contextlib import suppress

import pytest

from service.http import slow_clients
from service.http.server import connection
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
from tests.support.services.thread import Service, StartService

KEY = "a signing key"
MIB = 1 << 20


@pytest.fixture
def short_timeout_service(start_service: StartService, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 1.0)
    return start_service(read_timeout="1s")


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_connection_without_a_complete_head_is_closed(
    short_timeout_service: Service, head: bytes
) -> None:
    started = time.monotonic()
    with suppress(ConnectionResetError):
        assert raw_request(short_timeout_service.url, head) == b""
    assert 0.9 < time.monotonic() - started < 5


def test_slow_second_head_on_a_connection_times_out(short_timeout_service: Service) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect_to(short_timeout_service.url) as connection:
        connection.sendall(request)
        assert read_response(connection).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        with suppress(OSError):
            while True:
                connection.sendall(b"G")
                time.sleep(0.1)
    assert 0.9 < time.monotonic() - started < 5


@needs_proc
def test_client_that_receives_nothing_is_disconnected(short_timeout_service: Service) -> None:
    bundle = bytes(20 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = short_timeout_service.http.post("/upload", content=bundle, headers=proof).text
    proof_lines = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    with connect_to(short_timeout_service.url) as connection:
        connection.sendall(
            f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof_lines}\r\n".encode()
        )
        port = connection.getsockname()[1]
        wait_until(lambda: port in connected_ports(short_timeout_service.url), timeout=5)
        wait_until(lambda: port not in connected_ports(short_timeout_service.url), timeout=10)


@pytest.fixture
def short_grace_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that enforces the minimum rate after one second."""
    monkeypatch.setattr(slow_clients, "GRACE_PERIOD", 1.0)
    return service


def test_upload_below_the_minimum_rate_gets_408(short_grace_service: Service) -> None:
    started = time.monotonic()
    with connect_to(short_grace_service.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n")
        connection.settimeout(0.05)
        response = b""
        while not response:
            connection.sendall(b"x")
            with suppress(TimeoutError):
                response = connection.recv(65_536)
        connection.settimeout(15)
        response += read_until_closed(connection)
        assert 0.9 < time.monotonic() - started < 5
        assert response.startswith(b"HTTP/1.1 408")
        assert b'"upload_timeout"' in response


@needs_proc
@pytest.mark.parametrize("rate", [4, 24])
def test_download_below_the_minimum_rate_is_disconnected(
    short_grace_service: Service, rate: int
) -> None:
    """`rate` is in KiB/s; the minimum is 16. A client that receives nothing would have 30 s."""
    bundle = bytes(20 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = short_grace_service.http.post("/upload", content=bundle, headers=proof).text
    proof_lines = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        connection.connect(("127.0.0.1", int(short_grace_service.url.rsplit(":", 1)[1])))
        connection.sendall(
            f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof_lines}\r\n".encode()
        )
        port = connection.getsockname()[1]
        for _ in range(12):
            connection.recv(rate * 1024 // 2, socket.MSG_WAITALL)
            time.sleep(0.5)
        if rate > 16:
            assert port in connected_ports(short_grace_service.url)
        else:
            wait_until(lambda: port not in connected_ports(short_grace_service.url), timeout=10)


def test_client_that_half_closes_after_its_upload_gets_the_id(service: Service) -> None:
    with connect_to(service.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nbundle")
        connection.shutdown(socket.SHUT_WR)
        response = read_until_closed(connection)
    assert response.startswith(b"HTTP/1.1 200")
    bundle_id = response.split(b"\r\n\r\n")[1].decode()
    assert service.fetch(bundle_id, sign(KEY, b"bundle")).content == b"bundle"


def test_incomplete_upload_that_is_half_closed_stores_nothing(service: Service) -> None:
    service.delete_objects()
    with connect_to(service.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbundle")
        connection.shutdown(socket.SHUT_WR)
        assert read_until_closed(connection) == b""
    assert not service.objects()


INVALID_REQUESTS = {
    "TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "header without a colon": b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "invalid chunk": (
        b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"
    ),
    "invalid chunk and header": (
        b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"
    ),
    "two lengths": b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\nbundle",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000,
    "many headers": b"".join([b"GET / HTTP/1.1\r\nHost: x\r\n", *[b"X: x\r\n"] * 20_000]),
}


@pytest.mark.parametrize("name", INVALID_REQUESTS)
def test_invalid_request_gets_4xx_and_logs_no_error(
    service: Service, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        response = raw_request(service.url, INVALID_REQUESTS[name])
    except ConnectionResetError:
        response = b"HTTP/1.1 4"
    assert response.startswith(b"HTTP/1.1 4")
    assert service.http.get("/healthz").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_invalid_chunk_after_an_early_response_logs_no_error(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with connect_to(service.url) as connection:
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert read_response(connection).startswith(b"HTTP/1.1 400")
        connection.sendall(b"not a chunk\r\n")
        read_until_closed(connection)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_upgrade_header_is_ignored(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """The JDK's client sends it with the first request. The body still belongs to the upload."""
    response = raw_request(
        service.url,
        b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nContent-Length: 6\r\n\r\nbundle",
    )
    assert response.startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
