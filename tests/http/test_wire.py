"""The wire itself: early answers, old clients, odd paths, errors as problems, CORS, the log."""

import json
import os
import time
from http.client import HTTPResponse

import pytest

from service.http.problems import STATUS
from tests.support.clients.signing import sign
from tests.support.clients.sockets import (
    dial,
    hung_up,
    problem_code,
    raw_request,
    read_all,
    read_answer,
    read_exactly,
)
from tests.support.polling import until
from tests.support.services.thread import Serve, Service

KEY = "a signing key"
MIB = 1 << 20


EARLY = [
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


@pytest.mark.parametrize(("head", "status", "code"), EARLY)
@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_before_the_bodys_end_arrives_whole(
    service: Service, head: bytes, status: int, code: str, *, chunked: bool
) -> None:
    """However much the client goes on sending before it reads."""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (64 * MIB)
    piece = b"100000\r\n" + bytes(MIB) + b"\r\n" if chunked else bytes(MIB)
    with dial(service.url) as connection:
        connection.sendall(head + b"Host: x\r\n" + framing + b"\r\n\r\n")
        for _ in range(8):
            connection.sendall(piece)
        answer = HTTPResponse(connection)
        answer.begin()
        assert json.loads(answer.read())["code"] == code
    assert answer.status == status
    assert answer.headers["Connection"] == "close"


def test_overload_is_said_before_the_body_is_read(serve: Serve) -> None:
    """Two slow uploads hold all there is; a third is refused in time, then served again."""
    service = serve(memory_budget=10 * MIB, part_size=5 * MIB, queue_timeout="1s")
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5242880\r\n\r\n"
    with dial(service.url) as one, dial(service.url) as other:
        for connection in (one, other):
            connection.sendall(head + b"some")
        used = 'history_memory_used_bytes{pool="parts"}'
        until(lambda: service.metrics()[used] == 10 * MIB)
        answer = raw_request(service.url, head)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer
        assert problem_code(answer) == b"overloaded"
        unknown = service.http.post("/upload", content=iter([b"small ones have room"]))
        assert unknown.status_code == 200
    until(lambda: service.http.post("/upload", content=bytes(5 * MIB)).status_code == 200)


def test_lingering_is_bounded(service: Service) -> None:
    """A client that neither reads on nor hangs up is left after two seconds."""
    began = time.monotonic()
    answer = raw_request(
        service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\nContent-Length: 99\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert 1.5 < time.monotonic() - began < 5


def test_expect_100_continue_is_refused_before_the_body_is_asked_for(service: Service) -> None:
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    answer = raw_request(service.url, head + b"Content-Length: 999999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    with dial(service.url) as connection:
        connection.sendall(head + b"Connection: close\r\nContent-Length: 6\r\n\r\n")
        going_on = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert read_exactly(connection, len(going_on)) == going_on
        connection.sendall(b"bundle")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_a_stalled_upload_is_timed_out(serve: Serve) -> None:
    service = serve(read_timeout="1s")
    answer = raw_request(
        service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nsome"
    )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert problem_code(answer) == b"upload_timeout"
    assert not service.objects()


def test_a_reader_that_never_reads_is_left(serve: Serve) -> None:
    service = serve(read_timeout="1s")
    bundle = bytes(20 * MIB)
    bundle_id = service.upload(bundle)
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, bundle).items())
    with dial(service.url) as connection:
        connection.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof}\r\n".encode())
        until(lambda: hung_up(connection), seconds=10)
        with pytest.raises(ConnectionResetError):
            read_all(connection)


def test_two_lengths_are_one_too_many(service: Service) -> None:
    """A proxy in between may have taken the other one: the connection must not go on."""
    answer = raw_request(
        service.url,
        b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n6\r\nbundle\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert problem_code(answer) == b"malformed_header"


def test_a_slow_but_steady_reader_gets_everything(serve: Serve) -> None:
    """Whatever the kernel's buffers hold: what counts is that bytes are taken all the time."""
    service = serve(read_timeout="1s")
    bundle = os.urandom(6 * MIB)
    proof = sign(KEY, bundle)
    bundle_id = service.http.post("/upload", content=bundle, headers=proof).text
    head = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    received = bytearray()
    with dial(service.url) as connection:
        head = f"Host: x\r\nConnection: close\r\n{head}\r\n"
        connection.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\n{head}".encode())
        while data := connection.recv(65_536):
            received += data
            time.sleep(0.05)
    assert received.endswith(bundle)


def test_an_empty_upload(service: Service) -> None:
    for framing in (
        b"Content-Length: 0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\r\n",
    ):
        answer = raw_request(
            service.url, b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + framing
        )
        assert problem_code(answer) == b"empty_bundle"


@pytest.mark.parametrize("path", ["/upload", "//upload", "/upload/", "///upload//"])
def test_paths_are_taken_for_what_they_mean(service: Service, path: str) -> None:
    """Without a redirect, after which a streaming client would send an empty body."""
    answer = service.http.post(f"{service.url}{path}", content=b"bundle")
    assert answer.status_code == 200
    bundle_id = answer.text
    for prefix, suffix in (("//files/", ""), ("/files/", "/"), ("/files//", "//")):
        got = service.http.get(
            f"{service.url}{prefix}{bundle_id}{suffix}", headers=sign(KEY, b"bundle")
        )
        assert got.content == b"bundle"


@pytest.mark.parametrize(
    "spelling", ["{}", "{{{}}}", "urn:uuid:{}", "%7B{}%7D", "{}?query", "{}?a=/b"]
)
def test_spellings_of_an_id(service: Service, spelling: str) -> None:
    bundle_id = service.upload(b"bundle")
    for form in (bundle_id, bundle_id.upper(), bundle_id.replace("-", "")):
        got = service.fetch(spelling.format(form), sign(KEY, b"bundle"))
        assert got.content == b"bundle"
        assert got.headers["Content-Disposition"] == f'attachment; filename="{bundle_id}"'


def test_http_1_0_and_keep_alive(service: Service) -> None:
    answer = raw_request(service.url, b"POST /upload HTTP/1.0\r\nContent-Length: 6\r\n\r\nbundle")
    assert answer.split(b"\r\n")[0].endswith(b" 200 OK")
    with dial(service.url) as connection:
        for _ in range(3):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_a_proof_header_sent_twice(service: Service) -> None:
    bundle_id = service.upload(b"bundle")
    hmac = sign(KEY, b"bundle")["X-HMAC"].encode()
    answer = raw_request(
        service.url,
        b"GET /files/%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-HMAC: %b\r\n"
        b"X-SIGNING-KEY: a\r\nX-Signing-Key: b\r\n\r\n" % (bundle_id.encode(), hmac),
    )
    assert problem_code(answer) == b"malformed_header"


def test_a_list_in_several_lines(service: Service) -> None:
    """RFC 9110, section 5.3: they are one; two ranges so are more than are served."""
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
    answer = raw_request(
        service.url,
        b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        b"\r\n6\r\nbundle\r\n0\r\nX-HMAC: %b\r\n\r\n" % (b"0" * 64),
    )
    bundle_id = answer.split(b"\r\n\r\n")[1].decode()
    assert "hmac-sha256" not in service.tags(bundle_id)


def test_the_quiet_paths(service: Service) -> None:
    for path in ("/", "/healthz", f"{service.url}/healthz"):
        for method in ("GET", "HEAD"):
            assert service.http.request(method, path).status_code == 200
    answer = service.http.put("/files/x")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "DELETE"}
    assert service.http.get("/elsewhere").json()["code"] == "not_found"


def test_a_problem_is_what_rfc_9457_says(service: Service) -> None:
    answer = service.fetch("x", sign(KEY, b""))
    problem = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem.keys() == {"type", "title", "status", "detail", "code"}
    assert (problem["type"], problem["title"], problem["status"]) == (
        "about:blank",
        "Not Found",
        404,
    )
    assert STATUS[problem["code"]] == answer.status_code


def test_a_bug_is_answered_blank_and_logged_whole(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> float:
        raise ArithmeticError("a secret of the inside")

    service = serve(clock=broken)
    answer = service.http.post(
        "/upload", content=b"bundle", headers={"Origin": "https://a.example"}
    )
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    until(lambda: "a secret of the inside" in caplog.text)


def test_cors(serve: Serve, service: Service) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Origin": "https://app.example"}
    answer = service.http.options(
        "/upload", headers={**preflight, "Access-Control-Request-Headers": "x-hmac,x-signing-key"}
    )
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Max-Age"] == "3600"
    refused = service.http.options(
        "/upload", headers={**preflight, "Access-Control-Request-Method": "PUT"}
    )
    assert refused.status_code == 200
    assert "PUT" not in refused.headers["Access-Control-Allow-Methods"]
    for path in ("/files/x", "/nowhere"):
        answer = service.http.get(path, headers={"Origin": "https://app.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Sunset" in answer.headers["Access-Control-Expose-Headers"]
    choosy = serve(cors_origins="https://app.example, https://other.example")
    for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
        answer = choosy.http.get("/", headers={"Origin": origin})
        assert ("Access-Control-Allow-Origin" in answer.headers) is allowed


def test_the_log_shortens_ids_and_holds_no_key(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        bundle_id = service.upload(b"bundle")
        proof = sign("a-very-secret-key", b"bundle")
        assert service.fetch(bundle_id, proof).status_code == 200
        assert service.fetch(bundle_id, {**proof, "X-HMAC": "0" * 64}).status_code == 401
    lines = [
        record.getMessage() for record in caplog.records if record.name == "service.http.access_log"
    ]
    assert any(line.startswith(f"GET /files/{bundle_id[:8]}… 200 ") for line in lines)
    text = "".join(lines)
    assert bundle_id not in text
    assert "a-very-secret-key" not in caplog.text
