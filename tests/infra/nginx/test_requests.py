"""Requests through nginx to real replicas."""

import hmac
import json
import re
import socket
import stat
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.infra.nginx.front import BUNDLE, PROOF, Front
from tests.infra.nginx.problems import problem
from tests.infra.stack.nginx import Nginx
from tests.support.clients import path_spellings
from tests.support.clients.sockets import raw_request, read_answer
from tests.support.polling import until
from tests.support.proxy import Fault, Stall

END = b"Host: x\r\nConnection: close\r\n\r\n"

# The replicas are started once, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")
MIB = 1 << 20


def test_every_operation(front: Front) -> None:
    """Also with the body as a form or in chunks, and keys of any bytes."""
    key = bytes({*range(0x21, 0x100)} - {0x7F})
    proof = {b"X-HMAC": PROOF["X-HMAC"].encode(), b"X-SIGNING-KEY": key}
    refused = front.http.post("/upload", content=BUNDLE, headers=proof)
    problem(refused, 422, "hmac_mismatch")
    proof = {b"X-HMAC": hmac.new(key, BUNDLE, "sha256").hexdigest().encode(), b"X-SIGNING-KEY": key}
    answer = front.http.post("/upload", content=BUNDLE, headers=proof)
    assert answer.status_code == 200
    path = answer.headers["Location"]
    assert path == f"/files/{answer.text}"
    whole = front.http.get(path, headers=proof)
    assert whole.content == BUNDLE
    part = front.http.get(path, headers=[*proof.items(), (b"Range", b"bytes=5-8")])
    assert (part.status_code, part.content) == (206, BUNDLE[5:9])
    head = front.http.head(path, headers=proof)
    assert head.headers["Content-Length"] == str(len(BUNDLE))
    problem(front.http.get(path, headers=PROOF), 401, "invalid_hmac")
    assert front.http.delete(path, headers=proof).status_code == 204
    problem(front.http.get(path, headers=proof), 404, "not_found")

    form = front.http.post("/upload", files={"file": BUNDLE})
    chunks = front.http.post(
        "/upload", content=(BUNDLE[at : at + MIB] for at in range(0, len(BUNDLE), MIB))
    )
    for uploaded in (form, chunks):
        assert front.http.get(f"/files/{uploaded.text}", headers=PROOF).content == BUNDLE


@pytest.mark.parametrize("path", ["//upload", "/upload/", "/upload//", "/%75pload"])
def test_no_path_is_redirected(front: Front, path: str) -> None:
    answer = raw_request(
        front.url,
        f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
        + b"Content-Length: 6\r\nConnection: close\r\n\r\nbundle",
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nlocation: /files/" in answer


def test_files_without_a_slash_is_no_redirect_either(front: Front) -> None:
    problem(front.http.get("/files"), 404, "not_found")


@pytest.mark.parametrize("target", path_spellings.INTERNAL)
def test_no_spelling_reaches_what_stays_inside(front: Front, target: str) -> None:
    """Not even one that the replica itself would understand."""
    answer = raw_request(front.url, f"GET {target} HTTP/1.1\r\n".encode() + END)
    assert int(answer.split(b" ")[1]) in {400, 404}
    assert b"application/problem+json\r\n" in answer
    assert b"history_" not in answer
    assert b"ready\n" not in answer


@pytest.mark.parametrize("target", path_spellings.NOT_PRINTABLE)
def test_a_path_that_is_not_printable_is_refused(front: Front, target: str) -> None:
    answer = raw_request(front.url, f"GET {target} HTTP/1.1\r\n".encode() + END)
    assert int(answer.split(b" ")[1]) in {400, 404}


@pytest.mark.parametrize(
    "target", ["/", "//", "/healthz", "//healthz/", "/openapi.json", "/%68ealthz"]
)
def test_the_contract_is_passed_on(front: Front, target: str) -> None:
    answer = raw_request(front.url, f"GET {target} HTTP/1.1\r\n".encode() + END)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_that_it_lives_is_public_but_not_its_version(front: Front) -> None:
    answer = front.http.get("/healthz")
    assert (answer.status_code, answer.headers["Server"]) == (200, "nginx")


def test_the_request_id_goes_through(front: Front) -> None:
    def answered(given: str) -> str:
        return front.http.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"]

    assert answered("from-the-client.1") == "from-the-client.1"
    for unfit in ("", "two words", '"', "x" * 129):
        assert re.fullmatch("[0-9a-f]{32}", answered(unfit))
    # Once in nginx's log, once in a replica's.
    until(lambda: front.output.read_text().count("from-the-client.1") == 2)
    assert "two words" not in front.output.read_text()


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
def test_no_whole_id_is_logged(front: Front, path: str, logged: str) -> None:
    """Nor is a client believed that names another address as its own."""
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
    raw_request(front.url, "\r\n".join([*lines, "", ""]).encode())
    expected = f'"request_id":"{request_id}","client":"127.0.0.1","method":"GET","path":"{logged}"'
    until(lambda: expected in front.output.read_text())
    assert bundle_id not in front.output.read_text()


def test_an_early_answer_arrives(front: Front) -> None:
    """Also at a client that sends all it has before it reads."""
    for _ in range(5):
        answer = front.http.post("/upload", content=BUNDLE, headers={"X-HMAC": "none"})
        problem(answer, 400, "malformed_header")


def test_who_stalls_is_told_so(front: Front) -> None:
    """By the service, whose patience is shorter than nginx's."""
    with front.begin_upload() as connection:
        assert read_answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_is_too_large(front: Front) -> None:
    """By the service's limit, which it answers itself, and by nginx's, which is never read."""
    for declared in (17 * MIB, 101 * MIB):
        with front.begin_upload(declared) as connection:
            response = HTTPResponse(connection)
            response.begin()
            assert response.status == 413
            assert response.getheader("Content-Type") == "application/problem+json"
            assert json.loads(response.read())["code"] == "bundle_too_large"
    problem(front.http.post("/upload", content=bytes(17 * MIB)), 413, "bundle_too_large")


def test_long_headers(front: Front) -> None:
    assert front.http.get("/healthz", headers={"X-SIGNING-KEY": "k" * 15_000}).status_code == 200
    problem(
        front.http.get("/healthz", headers={"X-SIGNING-KEY": "k" * 17_000}),
        431,
        "headers_too_large",
    )
    problem(front.http.get("/" + "x" * 17_000), 414, "uri_too_long")
    problem(front.http.get("/files/" + "x" * 8_200), 414, "uri_too_long")
    many = {f"x-{at}": "" for at in range(120)}
    problem(front.http.get("/healthz", headers=many), 431, "headers_too_large")


def test_an_upload_arrives_while_it_is_sent(front: Front) -> None:
    front.store.requests.clear()
    with front.begin_upload() as connection:
        until(lambda: any(it.operation == "UploadPart" for it in front.store.requests), seconds=10)
        connection.sendall(BUNDLE[len(BUNDLE) // 2 :])
        answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_download_arrives_while_it_is_fetched(front: Front) -> None:
    """Its proof was held against the whole of it at upload: the receipt is enough."""
    bundle_id = front.upload()
    front.store.requests.clear()
    front.store.faults.append(Fault("GetObject", Stall(2, after_bytes=6 * MIB)))
    with front.http.stream("GET", f"/files/{bundle_id}", headers=PROOF) as answer:
        pieces = answer.iter_raw()
        received = bytearray(next(pieces))
        while len(received) < 5 * MIB:
            received += next(pieces)
        assert not any(it.completed for it in front.store.requests if it.operation == "GetObject")
        for piece in pieces:
            received += piece
    assert received == BUNDLE


def test_nothing_of_a_bundle_is_written_to_disk(front: Front) -> None:
    """While an upload dribbles in, and a download whose client reads nothing until then."""
    bundle_id = front.upload()
    before = on_disk(front.stack.nginx)
    assert front.output in before
    proof = "".join(f"{name}: {value}\r\n" for name, value in PROOF.items())
    piece = len(BUNDLE) // 96
    with socket.socket() as reader, front.begin_upload() as writer:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        reader.settimeout(15)
        reader.connect(writer.getpeername())
        reader.sendall(f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\n{proof}\r\n".encode())
        for at in range(len(BUNDLE) // 2, len(BUNDLE), piece):
            writer.sendall(BUNDLE[at : at + piece])
            assert on_disk(front.stack.nginx) == before
        assert read_answer(writer).startswith(b"HTTP/1.1 200 ")
        download = HTTPResponse(reader)
        download.begin()
        received = bytearray()
        while read := download.read(piece):
            received += read
            assert on_disk(front.stack.nginx) == before
    assert received == BUNDLE


def on_disk(nginx: Nginx) -> set[Path]:
    """Files in its folder, and those that its workers have open, also where their name is gone."""
    found = {path for path in nginx.folder.rglob("*") if not path.is_dir()}
    workers = Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children").read_text().split()
    assert workers
    for worker in workers:
        for link in Path(f"/proc/{worker}/fd").iterdir():
            with suppress(FileNotFoundError):  # It was a connection that has ended.
                if stat.S_ISREG(link.stat().st_mode):
                    found.add(link.readlink())
    return found


def test_its_page_is_at_the_address_that_the_browser_knows(front: Front) -> None:
    page = front.http.get("/", headers={"Accept": "text/html"}).text
    assert f"URL={front.url}\n" in page


def test_who_names_no_host_is_served(front: Front) -> None:
    assert raw_request(front.url, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_who_leaves_in_the_middle_leaves_nothing(front: Front) -> None:
    def pending() -> list[Any]:
        return list(front.s3.list_multipart_uploads(Bucket=front.bucket).get("Uploads", []))

    with front.begin_upload():
        until(lambda: len(pending()) == 1, seconds=10)
    until(lambda: not pending(), seconds=10)
