"""HTTP on the wire: early responses, timeouts, framing, paths, problems, CORS and the log."""

import json
import os
import time
from contextlib import ExitStack
from http.client import HTTPResponse

import pytest

from service.bundles.memory import WINDOW_SIZE
from service.http.problems import STATUS
from tests.support.clients.signing import sign
from tests.support.clients.sockets import (
    begin_upload,
    connect_to,
    peer_has_closed,
    problem_code,
    raw_request,
    read_exactly,
    read_response,
    read_until_closed,
)
from tests.support.polling import wait_until
from tests.support.services.thread import Service, StartService

KEY = "a signing key"
MIB = 1 << 20


EARLY_RESPONSES = [
    (b"POST /upload HTTP/1.1\r\nX-HMAC: 12\r\n", 400, "malformed_header"),
    (b"POST /upload HTTP/1.1\r\nX-SIGNING-KEY: k\r\n", 400, "missing_header"),
    (
        b"POST /upload HTTP/1.1\r\nX-HMAC: %b\r\nx-hmac: %b\r\n" % (b"0" * 64, b"1" * 64),
        400,
        "malformed_header",
    ),
    (b"POST /upload HTTP/1.1\r\nContent-Type: multipart/form-data\r\n", 400, "malformed_form"),
    (b"POST /nowhere HTTP/1.1\r\n", 404, "not_found"),
    (b"PUT /upload HTTP/1.1\r\n", 405, "method_not_allowed"),
    (b"GET /files/x HTTP/1.1\r\n", 400, "missing_header"),
]


@pytest.mark.parametrize(("head", "status", "code"), EARLY_RESPONSES)
@pytest.mark.parametrize("chunked", [True, False])
def test_response_before_the_end_of_the_body_arrives_complete(
    service: Service, head: bytes, status: int, code: str, *, chunked: bool
) -> None:
    """The client sends another 8 MiB before it reads the response."""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (64 * MIB)
    piece = b"100000\r\n" + bytes(MIB) + b"\r\n" if chunked else bytes(MIB)
    with connect_to(service.url) as connection:
        connection.sendall(head + b"Host: x\r\n" + framing + b"\r\n\r\n")
        for _ in range(8):
            connection.sendall(piece)
        response = HTTPResponse(connection)
        response.begin()
        assert json.loads(response.read())["code"] == code
    assert response.status == status
    assert response.headers["Connection"] == "close"


def test_overload_is_reported_before_the_body_is_read(start_service: StartService) -> None:
    """Slow uploads hold all windows. Another upload is refused until they have ended."""
    service = start_service(memory_budget=10 * MIB, part_size=5 * MIB, queue_timeout="1s")
    with ExitStack() as uploads:
        for _ in range(5 * MIB // WINDOW_SIZE):
            uploads.enter_context(begin_upload(service.url, b"some", 5 * MIB))
        memory_in_use = 'history_memory_used_bytes{pool="windows"}'
        wait_until(lambda: service.metrics()[memory_in_use] == 5 * MIB)
        response = raw_request(
            service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5242880\r\n\r\n"
        )
        assert response.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in response
        assert problem_code(response) == b"overloaded"
    wait_until(lambda: service.http.post("/upload", content=bytes(5 * MIB)).status_code == 200)


def test_connection_is_closed_two_seconds_after_an_early_response(service: Service) -> None:
    """The client neither sends the rest of the body nor closes the connection."""
    started = time.monotonic()
    response = raw_request(
        service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\nContent-Length: 99\r\n\r\n"
    )
    assert response.startswith(b"HTTP/1.1 400 ")
    assert 1.5 < time.monotonic() - started < 5


def test_expect_100_continue_is_refused_or_confirmed_before_the_body(service: Service) -> None:
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    response = raw_request(service.url, head + b"Content-Length: 999999999999\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 413 ")
    with connect_to(service.url) as connection:
        connection.sendall(head + b"Connection: close\r\nContent-Length: 6\r\n\r\n")
        interim_response = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert read_exactly(connection, len(interim_response)) == interim_response
        connection.sendall(b"bundle")
        assert read_until_closed(connection).startswith(b"HTTP/1.1 200 ")


def test_stalled_upload_times_out(start_service: StartService) -> None:
    service = start_service(read_timeout="1s")
    response = raw_request(
        service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nsome"
    )
    assert response.startswith(b"HTTP/1.1 408 ")
    assert problem_code(response) == b"upload_timeout"
    assert not service.objects()


def test_client_that_never_reads_is_disconnected(start_service: StartService) -> None:
    service = start_service(read_timeout="1s")
    bundle = bytes(20 * MIB)
    bundle_id = service.upload(bundle)
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, bundle).items())
    with connect_to(service.url) as connection:
        connection.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof}\r\n".encode())
        wait_until(lambda: peer_has_closed(connection), timeout=10)
        with pytest.raises(ConnectionResetError):
            read_until_closed(connection)


def test_request_with_two_body_lengths_is_refused(service: Service) -> None:
    """A proxy may have used the other length, so the connection must not serve more requests."""
    response = raw_request(
        service.url,
        b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n6\r\nbundle\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    )
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1") == 1
    assert problem_code(response) == b"malformed_header"


def test_slow_but_steady_client_downloads_the_whole_bundle(start_service: StartService) -> None:
    """The client receives bytes all the time, whatever the kernel's buffers hold."""
    service = start_service(read_timeout="1s")
    bundle = os.urandom(6 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    proof_lines = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    received = bytearray()
    with connect_to(service.url) as connection:
        head = f"Host: x\r\nConnection: close\r\n{proof_lines}\r\n"
        connection.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\n{head}".encode())
        while data := connection.recv(65_536):
            received += data
            time.sleep(0.05)
    assert received.endswith(bundle)


def test_empty_upload_is_refused(service: Service) -> None:
    for framing in (
        b"Content-Length: 0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\r\n",
    ):
        response = raw_request(
            service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + framing
        )
        assert problem_code(response) == b"empty_bundle"


@pytest.mark.parametrize("path", ["/upload", "//upload", "/upload/", "///upload//"])
def test_extra_slashes_in_a_path_are_ignored(service: Service, path: str) -> None:
    """There is no redirect, because a streaming client would send an empty body after it."""
    response = service.http.post(f"{service.url}{path}", content=b"bundle")
    assert response.status_code == 200
    bundle_id = response.text
    for prefix, suffix in (("//files/", ""), ("/files/", "/"), ("/files//", "//")):
        downloaded = service.http.get(
            f"{service.url}{prefix}{bundle_id}{suffix}", headers=sign(KEY, b"bundle")
        )
        assert downloaded.content == b"bundle"


@pytest.mark.parametrize(
    "spelling", ["{}", "{{{}}}", "urn:uuid:{}", "%7B{}%7D", "{}?query", "{}?a=/b"]
)
def test_bundle_id_is_accepted_in_every_spelling_of_a_uuid(service: Service, spelling: str) -> None:
    bundle_id = service.upload(b"bundle")
    for digits in (bundle_id, bundle_id.upper(), bundle_id.replace("-", "")):
        downloaded = service.fetch(spelling.format(digits), sign(KEY, b"bundle"))
        assert downloaded.content == b"bundle"
        assert downloaded.headers["Content-Disposition"] == f'attachment; filename="{bundle_id}"'


def test_http_1_0_and_keep_alive_are_supported(service: Service) -> None:
    response = raw_request(service.url, b"POST /upload HTTP/1.0\r\nContent-Length: 6\r\n\r\nbundle")
    assert response.split(b"\r\n")[0].endswith(b" 200 OK")
    with connect_to(service.url) as connection:
        for _ in range(3):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_response(connection).startswith(b"HTTP/1.1 200 ")


def test_proof_header_sent_twice_is_refused(service: Service) -> None:
    bundle_id = service.upload(b"bundle")
    hmac = sign(KEY, b"bundle")["X-HMAC"].encode()
    response = raw_request(
        service.url,
        b"GET /files/%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-HMAC: %b\r\n"
        b"X-SIGNING-KEY: a\r\nX-Signing-Key: b\r\n\r\n" % (bundle_id.encode(), hmac),
    )
    assert problem_code(response) == b"malformed_header"


def test_header_lines_with_the_same_name_are_one_list(service: Service) -> None:
    """RFC 9110, section 5.3. Two Range lines are therefore several ranges, which get 200."""
    bundle_id, proof = service.upload(b"bundle"), sign(KEY, b"bundle")
    etag = service.head(bundle_id, proof).headers["ETag"]
    for name, lines, expected in (
        ("If-Match", ['"other"', etag], 200),
        ("If-Match", ['"other"', '"another"'], 412),
        ("Range", ["bytes=0-1", "bytes=2-3"], 200),
    ):
        headers = [*proof.items(), *((name, line) for line in lines)]
        assert service.http.get(f"/files/{bundle_id}", headers=headers).status_code == expected


def test_trailers_never_become_headers(service: Service) -> None:
    response = raw_request(
        service.url,
        b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        b"\r\n6\r\nbundle\r\n0\r\nX-HMAC: %b\r\n\r\n" % (b"0" * 64),
    )
    bundle_id = response.split(b"\r\n\r\n")[1].decode()
    assert "hmac-sha256" not in service.record(bundle_id)


def test_root_and_healthz_respond_and_other_requests_get_405_or_404(service: Service) -> None:
    for path in ("/", "/healthz", f"{service.url}/healthz"):
        for method in ("GET", "HEAD"):
            assert service.http.request(method, path).status_code == 200
    response = service.http.put("/files/x")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "DELETE"}
    assert service.http.get("/elsewhere").json()["code"] == "not_found"


def test_problem_has_the_members_of_rfc_9457(service: Service) -> None:
    response = service.fetch("x", sign(KEY, b""))
    problem = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert problem.keys() == {"type", "title", "status", "detail", "code"}
    assert (problem["type"], problem["title"], problem["status"]) == (
        "about:blank",
        "Not Found",
        404,
    )
    assert STATUS[problem["code"]] == response.status_code


def test_unexpected_error_is_logged_but_hidden_from_the_client(
    start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> float:
        raise ArithmeticError("an internal secret")

    service = start_service(clock=broken)
    response = service.http.post(
        "/upload", content=b"bundle", headers={"Origin": "https://a.example"}
    )
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    wait_until(lambda: "an internal secret" in caplog.text)


def test_cors_headers_are_sent_to_allowed_origins(
    start_service: StartService, service: Service
) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Origin": "https://app.example"}
    response = service.http.options(
        "/upload", headers={**preflight, "Access-Control-Request-Headers": "x-hmac,x-signing-key"}
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Max-Age"] == "3600"
    refused = service.http.options(
        "/upload", headers={**preflight, "Access-Control-Request-Method": "PUT"}
    )
    assert refused.status_code == 200
    assert "PUT" not in refused.headers["Access-Control-Allow-Methods"]
    for path in ("/files/x", "/nowhere"):
        response = service.http.get(path, headers={"Origin": "https://app.example"})
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "Sunset" in response.headers["Access-Control-Expose-Headers"]
    restricted = start_service(cors_origins="https://app.example, https://other.example")
    for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
        response = restricted.http.get("/", headers={"Origin": origin})
        assert ("Access-Control-Allow-Origin" in response.headers) is allowed


def test_log_contains_shortened_ids_and_no_keys(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        bundle_id = service.upload(b"bundle")
        proof = sign("a-very-secret-key", b"bundle")
        assert service.fetch(bundle_id, proof).status_code == 200
        assert service.fetch(bundle_id, {**proof, "X-HMAC": "0" * 64}).status_code == 401
    messages = [
        record.getMessage() for record in caplog.records if record.name == "service.http.access_log"
    ]
    assert any(message.startswith(f"GET /files/{bundle_id[:8]}… 200 ") for message in messages)
    assert bundle_id not in "".join(messages)
    assert "a-very-secret-key" not in caplog.text
