"""What uvicorn lacks, through raw sockets: no connection lasts for ever, no garbage does harm."""

import socket
import time
from contextlib import suppress

import pytest

from service.http import slow_clients
from service.http.server import connection
from tests.support.clients.signing import sign
from tests.support.clients.sockets import dial, raw_request, read_all, read_answer, server_peers
from tests.support.marks import needs_proc
from tests.support.polling import until
from tests.support.services.thread import Serve, Service

KEY = "a signing key"
MIB = 1 << 20


@pytest.fixture
def impatient(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 1.0)
    return serve(read_timeout="1s")


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_never_ends(impatient: Service, head: bytes) -> None:
    began = time.monotonic()
    with suppress(ConnectionResetError):
        assert raw_request(impatient.url, head) == b""
    assert 0.9 < time.monotonic() - began < 5


def test_a_second_head_that_comes_in_drips(impatient: Service) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with dial(impatient.url) as connection:
        connection.sendall(request)
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        with suppress(OSError):
            while True:
                connection.sendall(b"G")
                time.sleep(0.1)
    assert 0.9 < time.monotonic() - began < 5


@needs_proc
def test_a_reader_that_takes_nothing_is_dropped_with_its_buffers(impatient: Service) -> None:
    bundle = bytes(20 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = impatient.http.post("/upload", content=bundle, headers=proof).text
    head = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    with dial(impatient.url) as connection:
        connection.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        port = connection.getsockname()[1]
        until(lambda: port in server_peers(impatient.url), seconds=5)
        until(lambda: port not in server_peers(impatient.url), seconds=10)


@pytest.fixture
def strict(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """It counts a client's average from the first second on."""
    monkeypatch.setattr(slow_clients, "GRACE_PERIOD", 1.0)
    return service


def test_an_upload_that_trickles_is_told_so(strict: Service) -> None:
    began = time.monotonic()
    with dial(strict.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n")
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            connection.sendall(b"x")
            with suppress(TimeoutError):
                answer = connection.recv(65_536)
        connection.settimeout(15)
        answer += read_all(connection)
        assert 0.9 < time.monotonic() - began < 5
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"upload_timeout"' in answer


@needs_proc
@pytest.mark.parametrize("rate", [4, 24])
def test_a_reader_is_dropped_if_it_is_too_slow(strict: Service, rate: int) -> None:
    """In KiB a second, of the 16 that are asked of it; to take nothing, it would have 30 s."""
    bundle = bytes(20 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = strict.http.post("/upload", content=bundle, headers=proof).text
    head = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        connection.connect(("127.0.0.1", int(strict.url.rsplit(":", 1)[1])))
        connection.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        port = connection.getsockname()[1]
        for _ in range(12):
            connection.recv(rate * 1024 // 2, socket.MSG_WAITALL)
            time.sleep(0.5)
        if rate > 16:
            assert port in server_peers(strict.url)
        else:
            until(lambda: port not in server_peers(strict.url), seconds=10)


def test_a_client_that_half_closes_gets_its_id(service: Service) -> None:
    with dial(service.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nbundle")
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    bundle_id = answer.split(b"\r\n\r\n")[1].decode()
    assert service.fetch(bundle_id, sign(KEY, b"bundle")).content == b"bundle"


def test_an_upload_that_is_half_closed_too_early_is_none(service: Service) -> None:
    service.clear()
    with dial(service.url) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbundle")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    assert not service.objects()


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\nbundle",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000,
    b"".join([b"GET / HTTP/1.1\r\nHost: x\r\n", *[b"X: x\r\n"] * 20_000]),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_answered_400_and_no_fault_of_the_server(
    service: Service, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        answer = raw_request(service.url, garbage)
    except ConnectionResetError:
        answer = b"HTTP/1.1 4"
    assert answer.startswith(b"HTTP/1.1 4")
    assert service.http.get("/healthz").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_garbage_after_an_early_answer(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with dial(service.url) as connection:
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert read_answer(connection).startswith(b"HTTP/1.1 400")
        connection.sendall(b"garbage\r\n")
        read_all(connection)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_an_upgrade_is_a_request_like_others(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """As JDK's client sends it with every first request: the body is its body."""
    answer = raw_request(
        service.url,
        b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nContent-Length: 6\r\n\r\nbundle",
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
