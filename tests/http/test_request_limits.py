"""Limits on request heads and trailers, and paths that are refused before routing."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from service.bundles.proof import MAX_DIGESTS
from service.http.middleware import MAX_TARGET_SIZE
from service.http.problems import STATUS
from service.http.server.parser import MAX_HEAD_LINES, MAX_HEAD_SIZE
from tests.support.clients import path_spellings
from tests.support.clients.malicious import STILL_OPEN, Attack, running_attacks
from tests.support.clients.sockets import connect_to, raw_request, read_response, read_until_closed
from tests.support.services.process import process_memory, service_process_for
from tests.support.services.thread import Service
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket

KIB = 1 << 10
MIB = 1 << 20

END = b"Host: x\r\nConnection: close\r\n\r\n"
CHUNKED = (
    b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def get(target: bytes, *lines: bytes) -> bytes:
    """Return a GET request with these header lines."""
    return b"GET %b HTTP/1.1\r\n%b%b" % (target, b"".join(line + b"\r\n" for line in lines), END)


def padded_get(size: int) -> bytes:
    """Return a GET request of `size` bytes, with as many header lines as are allowed."""
    count = MAX_HEAD_LINES - 2
    padding = size - len(get(b"/healthz", *[b"a:"] * count))
    per_line, extra = divmod(padding, count)
    lines = (b"a:" + b"x" * (per_line + (number < extra)) for number in range(count))
    return get(b"/healthz", *lines)


def upload_with_trailers(count: int, line: bytes = b"a:") -> bytes:
    return CHUNKED + b"6\r\nbundle\r\n0\r\n" + (line + b"\r\n") * count + b"\r\n"


ACCEPTED = {
    "the longest target": get(b"/" * MAX_TARGET_SIZE),
    "the longest query": get(b"/healthz?" + b"x" * (MAX_TARGET_SIZE - 9)),
    "the most lines": get(b"/healthz", *[b"a:"] * (MAX_HEAD_LINES - 2)),
    "the largest head": padded_get(MAX_HEAD_SIZE),
    "the most trailers": upload_with_trailers(MAX_HEAD_LINES),
}
REFUSED = {
    "a target that is too long by one byte": (get(b"/" * (MAX_TARGET_SIZE + 1)), "uri_too_long"),
    "a query that is too long by one byte": (
        get(b"/healthz?" + b"x" * (MAX_TARGET_SIZE - 8)),
        "uri_too_long",
    ),
    "a target longer than the largest head": (get(b"/" * 2 * MAX_HEAD_SIZE), "uri_too_long"),
    "a target without an end": (b"GET /" + b"x" * MIB, "uri_too_long"),
    "too many lines by one": (
        get(b"/healthz", *[b"a:"] * (MAX_HEAD_LINES - 1)),
        "headers_too_large",
    ),
    "5,000 lines": (get(b"/healthz", *[b"a:"] * 5000), "headers_too_large"),
    "lines without an end": (b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 100_000, "headers_too_large"),
    "a head that is too large by one byte": (padded_get(MAX_HEAD_SIZE + 1), "headers_too_large"),
    "a line longer than the largest head": (
        get(b"/healthz", b"a:" + b"x" * MAX_HEAD_SIZE),
        "headers_too_large",
    ),
    "a line without an end": (b"GET / HTTP/1.1\r\na:" + b"x" * MIB, "headers_too_large"),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "malformed_request"),
    "no HTTP version": (b"GET /\r\n\r\n", "malformed_request"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_request_at_a_limit_is_served(service: Service, name: str) -> None:
    assert raw_request(service.url, ACCEPTED[name]).startswith(b"HTTP/1.1 200 ")


def parse_problem(response: bytes) -> tuple[int, dict[str, Any]]:
    """Return the status and the problem in a response, which has to be complete."""
    head, _, body = response.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b"connection: close" in lines
    assert b"content-type: application/problem+json" in lines
    assert b"content-length: %d" % len(body) in lines
    problem: dict[str, Any] = json.loads(body)
    return int(head.split(b" ")[1]), problem


def send_until_closed(connection: socket.socket, request: bytes) -> None:
    """Send a request; stop if the server closes or resets the connection."""
    try:
        connection.sendall(request)
    except (BrokenPipeError, ConnectionResetError):
        return


@pytest.mark.parametrize("name", REFUSED)
def test_request_over_a_limit_gets_a_problem(service: Service, name: str) -> None:
    """The complete response arrives, even if the client is still sending."""
    request, code = REFUSED[name]
    with connect_to(service.url) as connection:
        send_until_closed(connection, request)
        status, problem = parse_problem(read_until_closed(connection))
    assert (status, problem["code"]) == (STATUS[code], code)
    assert problem["status"] == status


def test_upload_with_too_many_trailers_is_refused(service: Service) -> None:
    """A read of 64 KiB can hold 15,000 trailers, which would take 15,000 objects and 50 ms."""
    service.delete_objects()
    for request in (
        upload_with_trailers(MAX_HEAD_LINES + 2),
        upload_with_trailers(10, b"a:" + b"x" * 2000),
        upload_with_trailers(60_000),
    ):
        with connect_to(service.url) as connection:
            send_until_closed(connection, request)
            assert parse_problem(read_until_closed(connection))[0] == 431
    assert service.objects() == []


def test_refused_head_is_logged_once_with_its_code(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "service.http.server.connection"):
        raw_request(service.url, REFUSED["5,000 lines"][0])
    messages = [
        record.getMessage() for record in caplog.records if "rejected" in record.getMessage()
    ]
    assert messages == ["rejected a request that could not be parsed: 431 headers_too_large"]


@pytest.mark.parametrize("target", path_spellings.NOT_PRINTABLE)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD", "PUT"])
def test_path_that_is_not_printable_is_refused(service: Service, target: str, method: str) -> None:
    response = raw_request(service.url, f"{method} {target} HTTP/1.1\r\n".encode() + END)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert method == "HEAD" or b'"code": "malformed_request"' in response


@pytest.mark.parametrize("target", path_spellings.ACCEPTED)
def test_path_in_other_spellings_is_normalised(service: Service, target: str) -> None:
    head, _, body = raw_request(service.url, get(target.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body.startswith(path_spellings.ACCEPTED[target])


# -- Cost of request heads ------------------------------------------------------------------------

LINES = "".join(f"h{number:02}: {'x' * 150}\r\n" for number in range(MAX_HEAD_LINES - 2))
NO_BODY = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * KIB}\r\n{LINES}\r\n"
HALF_SENT = f"POST /upload HTTP/1.1\r\nHost: x\r\n{LINES}x: "
COMPLETE = f"GET /healthz HTTP/1.1\r\nHost: x\r\nx: y\r\n{LINES}\r\n"

FLOODS = {
    "lines": COMPLETE,
    "short lines": "GET /healthz HTTP/1.1\r\nHost: x\r\n"
    + "a:\r\n" * (MAX_HEAD_LINES - 1)
    + "\r\n",
    "trailers": CHUNKED.decode().replace("Connection: close\r\n", "X-TTL: 0\r\n")
    + "0\r\n"
    + "a:\r\n" * MAX_HEAD_LINES
    + "\r\n",
    "path": "GET " + "/files/" * (MAX_TARGET_SIZE // 7) + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "escapes": "GET /files/" + "%41" * 2700 + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "slashes": "GET " + "/" * MAX_TARGET_SIZE + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "hex": "GET /files/" + "a" * (MAX_TARGET_SIZE - 10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "dashes": "GET /files/" + "a-" * 4000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "accept": "GET / HTTP/1.1\r\nHost: x\r\nAccept: " + "a;q=1 ," * 2300 + "\r\n\r\n",
    "etags": "GET /files/x HTTP/1.1\r\nHost: x\r\nIf-Match: " + 'W/"' * 5400 + "\r\n\r\n",
    "digests": "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Digest: "
    + ",".join(["aaaaaaaaa=::"] * MAX_DIGESTS)
    + "\r\n\r\n",
    "form": "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
    f"Content-Type: multipart/form-data; {'a=b;' * 4000}\r\n\r\n",
}


def slowest_health_check(url: str, *, count: int) -> float:
    """Return the seconds that the slowest of `count` requests took."""
    durations = []
    with httpx.Client(base_url=url, trust_env=False) as http:
        for _ in range(count):
            started = time.monotonic()
            assert http.get("/healthz").status_code == 200
            durations.append(time.monotonic() - started)
    return max(durations)


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.soak
def test_health_check_is_fast_during_a_flood_of_requests(store: Store, s3: Any, name: str) -> None:
    """Ten connections send requests without a pause. Each health check takes less than 100 ms."""
    with service_process_for(store, new_bucket(s3)) as (url, _):
        slowest_health_check(url, count=10)
        with running_attacks(url, Attack(10, FLOODS[name], flood=True)) as attackers:
            slowest = slowest_health_check(url, count=200)
            [report] = attackers.stop()
    print(f"\n{name}: {report.sent >> 20} MiB of heads; slowest {slowest * 1e3:.1f} ms")
    assert report.sent > MIB
    assert slowest < 0.1


@contextmanager
def connections_with_large_heads(url: str, count: int) -> Iterator[None]:
    """Keep `count` connections in each state: idle, waiting for a body, and with half a head."""
    attacks = Attack(count, NO_BODY, interval=5), Attack(count, HALF_SENT, interval=5)
    with ExitStack() as connections, running_attacks(url, *attacks) as attackers:
        for _ in range(count):
            connection = connections.enter_context(connect_to(url))
            connection.sendall(COMPLETE.encode())
            assert read_response(connection).startswith(b"HTTP/1.1 200")
        yield
        no_body, half_sent = attackers.stop()
    assert set(no_body.counts) <= {STILL_OPEN, "408"}
    assert set(half_sent.counts) <= {STILL_OPEN, "reset"}


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_memory_for_many_request_heads_is_bounded(store: Store, s3: Any, count: int) -> None:
    """The memory budget + 160 MiB are enough for 1,000 connections in each of three states."""
    with service_process_for(store, new_bucket(s3), HISTORY_MEMORY_BUDGET="64MiB") as (
        url,
        process,
    ):
        slowest_health_check(url, count=10)
        before = process_memory(process.pid, "VmRSS")
        with connections_with_large_heads(url, count):
            loaded = process_memory(process.pid, "VmRSS")
        peak = process_memory(process.pid, "VmHWM")
    print(f"\n3 × {count} heads: {before / MIB:.0f} MiB without, {loaded / MIB:.0f} MiB with them")
    assert loaded - before < 3 * count * 32 * KIB
    assert peak <= (64 + 160) * MIB
