"""Requests through nginx to real replicas."""

import hmac
import json
import re
import socket
import stat
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from uuid import uuid4

import pytest

from tests.infra.nginx.gateway import BUNDLE, PROOF, Gateway
from tests.infra.nginx.problems import assert_problem
from tests.infra.stack.nginx import Nginx
from tests.support.clients import path_spellings
from tests.support.clients.sockets import raw_request, read_response
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Stall
from tests.support.stores.buckets import object_keys

HEADERS = b"Host: x\r\nConnection: close\r\n\r\n"

# One worker runs all nginx tests: they share two replicas, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")
MIB = 1 << 20


def test_every_operation_works_through_nginx(gateway: Gateway) -> None:
    """Bodies may also be forms or chunked, and keys may contain any byte."""
    key = bytes({*range(0x21, 0x100)} - {0x7F})
    proof = {b"X-HMAC": PROOF["X-HMAC"].encode(), b"X-SIGNING-KEY": key}
    refused = gateway.http.post("/upload", content=BUNDLE, headers=proof)
    assert_problem(refused, 422, "hmac_mismatch")
    proof = {b"X-HMAC": hmac.new(key, BUNDLE, "sha256").hexdigest().encode(), b"X-SIGNING-KEY": key}
    upload = gateway.http.post("/upload", content=BUNDLE, headers=proof)
    assert upload.status_code == 200
    path = upload.headers["Location"]
    assert path == f"/files/{upload.text}"
    whole = gateway.http.get(path, headers=proof)
    assert whole.content == BUNDLE
    part = gateway.http.get(path, headers=[*proof.items(), (b"Range", b"bytes=5-8")])
    assert (part.status_code, part.content) == (206, BUNDLE[5:9])
    head = gateway.http.head(path, headers=proof)
    assert head.headers["Content-Length"] == str(len(BUNDLE))
    assert_problem(gateway.http.get(path, headers=PROOF), 401, "invalid_hmac")
    assert gateway.http.delete(path, headers=proof).status_code == 204
    assert_problem(gateway.http.get(path, headers=proof), 404, "not_found")

    form = gateway.http.post("/upload", files={"file": BUNDLE})
    chunks = gateway.http.post(
        "/upload", content=(BUNDLE[start : start + MIB] for start in range(0, len(BUNDLE), MIB))
    )
    for upload in (form, chunks):
        assert gateway.http.get(f"/files/{upload.text}", headers=PROOF).content == BUNDLE


@pytest.mark.parametrize("path", ["//upload", "/upload/", "/upload//", "/%75pload"])
def test_upload_path_spelling_is_not_redirected(gateway: Gateway, path: str) -> None:
    response = raw_request(
        gateway.url,
        f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
        + b"Content-Length: 6\r\nConnection: close\r\n\r\nbundle",
    )
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nlocation: /files/" in response


def test_files_path_without_slash_is_not_redirected(gateway: Gateway) -> None:
    assert_problem(gateway.http.get("/files"), 404, "not_found")


@pytest.mark.parametrize("token", ["", "/t/x", "/t/.", "/t/..", "/t/x%2F.."])
@pytest.mark.parametrize("target", path_spellings.INTERNAL)
def test_no_path_spelling_reaches_an_internal_endpoint(
    gateway: Gateway, target: str, token: str
) -> None:
    """Not even a spelling that a replica itself accepts."""
    response = raw_request(gateway.url, f"GET {token}{target} HTTP/1.1\r\n".encode() + HEADERS)
    shows_page = token and b"\r\n\r\nmessage-history-server " in response
    if not shows_page:
        assert int(response.split(b" ")[1]) in {400, 404}
        assert b"application/problem+json\r\n" in response
    assert b"history_" not in response
    assert b"ready\n" not in response


@pytest.mark.parametrize("target", path_spellings.NOT_PRINTABLE)
def test_unprintable_path_is_refused(gateway: Gateway, target: str) -> None:
    response = raw_request(gateway.url, f"GET {target} HTTP/1.1\r\n".encode() + HEADERS)
    assert int(response.split(b" ")[1]) in {400, 404}


@pytest.mark.parametrize(
    "target", ["/", "//", "/healthz", "//healthz/", "/openapi.json", "/%68ealthz"]
)
def test_public_path_is_forwarded(gateway: Gateway, target: str) -> None:
    response = raw_request(gateway.url, f"GET {target} HTTP/1.1\r\n".encode() + HEADERS)
    assert response.startswith(b"HTTP/1.1 200 ")


def test_health_check_is_public_without_the_version_of_nginx(gateway: Gateway) -> None:
    response = gateway.http.get("/healthz")
    assert (response.status_code, response.headers["Server"]) == (200, "nginx")


def test_valid_request_id_is_kept_and_any_other_is_replaced(gateway: Gateway) -> None:
    def response_id(request_id: str) -> str:
        headers = {"X-Request-Id": request_id}
        return gateway.http.get("/healthz", headers=headers).headers["X-Request-Id"]

    assert response_id("from-the-client.1") == "from-the-client.1"
    for invalid in ("", "two words", '"', "x" * 129):
        assert re.fullmatch("[0-9a-f]{32}", response_id(invalid))
    # nginx and a replica log the request ID once each.
    wait_until(lambda: gateway.output.read_text().count("from-the-client.1") == 2)
    assert "two words" not in gateway.output.read_text()


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/files/{id}", "/files/0192f3c4…"),
        ("//files//{id}?x", "/files/0192f3c4…"),
        ("/files/urn:uuid:{id}", "/files/urn:uuid…"),
        ("/files/%30{id}", "/files/…"),
        ("/%66iles/{id}", "(encoded)"),
        ("/file/{id}", "/file/0192f3c4…"),
        ("/x?id={id}", "/x"),
        ("/" + 90 * "x", "/" + 79 * "x"),
        ("http://x/files/{id}", "/files/0192f3c4…"),
    ],
)
def test_bundle_ids_are_shortened_in_the_log(gateway: Gateway, path: str, logged: str) -> None:
    """The log also ignores X-Forwarded-For from an untrusted client."""
    bundle_id = "0192f3c4-aaaa-bbbb-cccc-0123456789ab"
    request_id = uuid4().hex
    lines = [
        f"GET {path.format(id=bundle_id)} HTTP/1.1",
        "Host: x",
        "Connection: close",
        "X-Forwarded-For: 192.0.2.1",
        f"X-Request-Id: {request_id}",
        f"Referer: http://x/files/{bundle_id}",
    ]
    raw_request(gateway.url, "\r\n".join([*lines, "", ""]).encode())
    expected = f'"request_id":"{request_id}","client":"127.0.0.1","method":"GET","path":"{logged}"'
    wait_until(lambda: expected in gateway.output.read_text())
    assert bundle_id not in gateway.output.read_text()


@pytest.mark.parametrize(
    "path",
    [
        "/t/{token}/upload",
        "//t//{token}//upload/",
        "http://x/t/{token}/upload?x",
        "/%74/{token}/upload",
        "/t%2F{token}/upload",
        "/t/./{token}/upload",
        "/x/../t/{token}/upload",
        "/files/../t/{token}/files/1",
        "/files/1/t%2F{token}",
        "/" + 90 * "x" + "/t/{token}/upload",
    ],
)
@pytest.mark.parametrize("length", [1, 101 * MIB])
def test_upload_tokens_are_not_logged(gateway: Gateway, path: str, length: int) -> None:
    token, request_id = f"token-{uuid4().hex}", uuid4().hex
    lines = [
        f"POST {path.format(token=token)} HTTP/1.1",
        *("Host: x", "Connection: close", f"Content-Length: {length}"),
        f"X-Request-Id: {request_id}",
        f"Authorization: Bearer {token}",
    ]
    raw_request(gateway.url, "\r\n".join([*lines, "", "1"]).encode())
    wait_until(lambda: f'"request_id":"{request_id}","client"' in gateway.output.read_text())
    assert token not in gateway.output.read_text()


def test_early_response_reaches_the_client(gateway: Gateway) -> None:
    """It also reaches a client that sends its whole body before it reads."""
    for _ in range(5):
        response = gateway.http.post("/upload", content=BUNDLE, headers={"X-HMAC": "none"})
        assert_problem(response, 400, "malformed_header")


def test_stalled_upload_gets_a_408(gateway: Gateway) -> None:
    """The response comes from the service, because its timeout is shorter than that of nginx."""
    with gateway.begin_upload() as connection:
        assert read_response(connection).startswith(b"HTTP/1.1 408 ")


def test_upload_larger_than_the_limit_is_refused(gateway: Gateway) -> None:
    """17 MiB exceed the limit of the service. 101 MiB exceed that of nginx, which reads no body."""
    for declared in (17 * MIB, 101 * MIB):
        with gateway.begin_upload(declared) as connection:
            response = HTTPResponse(connection)
            response.begin()
            assert response.status == 413
            assert response.getheader("Content-Type") == "application/problem+json"
            assert json.loads(response.read())["code"] == "bundle_too_large"
    assert_problem(gateway.http.post("/upload", content=bytes(17 * MIB)), 413, "bundle_too_large")


def test_long_headers_and_urls_are_refused(gateway: Gateway) -> None:
    assert gateway.http.get("/healthz", headers={"X-SIGNING-KEY": "k" * 15_000}).status_code == 200
    assert_problem(
        gateway.http.get("/healthz", headers={"X-SIGNING-KEY": "k" * 17_000}),
        431,
        "headers_too_large",
    )
    assert_problem(gateway.http.get("/" + "x" * 17_000), 414, "uri_too_long")
    assert_problem(gateway.http.get("/files/" + "x" * 8_200), 414, "uri_too_long")
    many = {f"x-{number}": "" for number in range(120)}
    assert_problem(gateway.http.get("/healthz", headers=many), 431, "headers_too_large")


def store_operations(gateway: Gateway) -> list[str]:
    return [request.operation for request in gateway.store.requests]


def test_upload_is_streamed_to_s3(gateway: Gateway) -> None:
    gateway.store.requests.clear()
    with gateway.begin_upload() as connection:
        wait_until(lambda: "PutObject" in store_operations(gateway), timeout=10)
        connection.sendall(BUNDLE[len(BUNDLE) // 2 :])
        response = read_response(connection)
    assert response.startswith(b"HTTP/1.1 200 ")


def test_download_is_streamed_from_s3(gateway: Gateway) -> None:
    """The proof was verified at the upload, so the receipt is enough to start the download."""
    bundle_id = gateway.upload()
    gateway.store.requests.clear()
    gateway.store.faults.append(Fault("GetObject", Stall(2, after_bytes=6 * MIB)))
    with gateway.http.stream("GET", f"/files/{bundle_id}", headers=PROOF) as response:
        pieces = response.iter_raw()
        received = bytearray(next(pieces))
        while len(received) < 5 * MIB:
            received += next(pieces)
        assert not any(
            request.completed
            for request in gateway.store.requests
            if request.operation == "GetObject"
        )
        for piece in pieces:
            received += piece
    assert received == BUNDLE


def test_nginx_writes_no_bundle_to_disk(gateway: Gateway) -> None:
    """Run a slow upload, and a download whose client reads nothing until the upload has ended."""
    bundle_id = gateway.upload()
    before = files_of(gateway.stack.nginx)
    assert gateway.output in before
    proof = "".join(f"{name}: {value}\r\n" for name, value in PROOF.items())
    piece_size = len(BUNDLE) // 96
    with socket.socket() as reader, gateway.begin_upload() as writer:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        reader.settimeout(15)
        reader.connect(writer.getpeername())
        reader.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof}\r\n".encode())
        for start in range(len(BUNDLE) // 2, len(BUNDLE), piece_size):
            writer.sendall(BUNDLE[start : start + piece_size])
            assert files_of(gateway.stack.nginx) == before
        assert read_response(writer).startswith(b"HTTP/1.1 200 ")
        download = HTTPResponse(reader)
        download.begin()
        received = bytearray()
        while piece := download.read(piece_size):
            received += piece
            assert files_of(gateway.stack.nginx) == before
    assert received == BUNDLE


def files_of(nginx: Nginx) -> set[Path]:
    """Return the files in nginx's folder and the open files of its workers, also deleted ones."""
    files = {path for path in nginx.folder.rglob("*") if not path.is_dir()}
    workers = Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children").read_text().split()
    assert workers
    for worker in workers:
        for link in Path(f"/proc/{worker}/fd").iterdir():
            with suppress(FileNotFoundError):  # A connection may have ended meanwhile.
                if stat.S_ISREG(link.stat().st_mode):
                    files.add(link.readlink())
    return files


def test_home_page_shows_the_public_url(gateway: Gateway) -> None:
    page = gateway.http.get("/", headers={"Accept": "text/html"}).text
    assert f"URL={gateway.url}\n" in page


def test_request_without_host_header_is_served(gateway: Gateway) -> None:
    assert raw_request(gateway.url, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_interrupted_upload_is_cleaned_up(gateway: Gateway) -> None:
    before = object_keys(gateway.s3, gateway.bucket)
    gateway.store.requests.clear()
    with gateway.begin_upload():
        wait_until(lambda: "PutObject" in store_operations(gateway), timeout=10)
    wait_until(lambda: "DeleteObject" in store_operations(gateway), timeout=10)
    wait_until(lambda: object_keys(gateway.s3, gateway.bucket) == before)
