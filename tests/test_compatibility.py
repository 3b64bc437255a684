"""Clients that nobody here wrote: replayed byte for byte, or run where they are at hand.

Each class below is named for the client whose requests it makes; their order, their case and their
framing are those seen on the wire. They stand no redirect and no content coding, and look at a
status as their client does. The histories that they carry are sealed and opened as libxmtp does it.
"""

import base64
import hmac
import importlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import yaml

from service.settings import Settings, load
from tests import histories
from tests.clients import dial, random_bytes, read_all, until
from tests.conftest import Serve, Service, running_service
from tests.histories import BrokenBundle, History
from tests.leaks import LEAKS
from tests.proxy import Drip, Fault, Proxy, Respond, Truncate
from tests.stores import Store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "examples" / "xmtp.md").read_text()
MIB = 1 << 20
ORIGIN = "http://localhost:3000"
SIGNING_KEY = LEAKS.used("the-key-that-signed-this-bundle")

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="curl is not installed: apt-get install curl"
)
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="Node.js is not installed: apt-get install nodejs"
)


class Refused(Exception):
    """What the client takes for an error: it tries again, or gives up."""


@dataclass(frozen=True)
class Bundle:
    """A history, sealed; `batches` are the pieces in which an exporter hands it on."""

    history: History
    key: bytes
    batches: tuple[bytes, ...]

    def opened(self, sent: bytes) -> History:
        if len(self.batches) == 1:
            return histories.open_jsonl_bundle(sent, self.key)
        return histories.open_archive([sent], self.key)


def seal(history: History, form: str = "archive") -> Bundle:
    rng = random.Random(11)
    key, nonce = rng.randbytes(32), rng.randbytes(12)
    if form == "archive":
        return Bundle(history, key, tuple(histories.archive(history, key, nonce)))
    history = History(history.groups, history.messages)
    return Bundle(history, key, (histories.jsonl_bundle(history, key, nonce),))


# --- the wire -------------------------------------------------------------------------------------


def exchange(
    connection: socket.socket, head: Sequence[str], body: Iterable[bytes] = ()
) -> HTTPResponse:
    """Send a request as it stands here; the answer, if it is one that every client can read."""
    connection.sendall("\r\n".join([*head, "", ""]).encode())
    for piece in body:
        connection.sendall(piece)
    answer = HTTPResponse(connection)
    answer.begin()
    assert not 300 <= answer.status < 400, "a redirect loses a streamed body"
    assert answer.headers["Content-Encoding"] is None, "libxmtp never decompresses"
    assert answer.headers["Content-Length"] is not None
    return answer


def stream(answer: HTTPResponse) -> Iterator[bytes]:
    """A body as it comes; `IncompleteRead` where it ends early, as every client here finds it."""
    left = int(answer.headers["Content-Length"])
    while left:
        piece = answer.read1(min(left, 16_384))
        if not piece:
            raise IncompleteRead(b"", left)
        left -= len(piece)
        yield piece


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%X\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def place(url: str) -> tuple[str, str]:
    """The host and the path as they stand in a request, with every slash."""
    parts = urlsplit(url)
    return parts.netloc, parts.path


# --- the clients ----------------------------------------------------------------------------------


class Client(ABC):
    """`upload` returns where the other device is to look; both raise `Refused`."""

    name: ClassVar[str]
    """As in the table of examples/xmtp.md."""
    form: ClassVar[str] = "archive"
    signs: ClassVar[bool] = False
    slash: ClassVar[str] = ""
    """What ends the URL that its apps were configured with."""

    @abstractmethod
    def upload(self, server: str, batches: Sequence[bytes]) -> str: ...

    @abstractmethod
    def download(self, url: str) -> bytes: ...


class Libxmtp(Client):
    """libxmtp's archives, on reqwest: streamed both ways, a connection for each request.

    Only a status from 400 on is an error. The answer's text goes untrimmed into the URL.
    """

    name = "libxmtp: Node, iOS, Android, React Native"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        with dial(server) as connection:
            return self.post(connection, server, batches)

    def download(self, url: str) -> bytes:
        with dial(url) as connection:
            return b"".join(self.get(connection, url))

    def post(self, connection: socket.socket, server: str, batches: Sequence[bytes]) -> str:
        host, path = place(f"{server}/upload")
        head = self.head(f"POST {path} HTTP/1.1", host)
        body = chunked(self.pieces(batches))
        with exchange(connection, [*head, "transfer-encoding: chunked"], body) as answer:
            if answer.status >= 400:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"

    def get(self, connection: socket.socket, url: str) -> Generator[bytes, None, None]:
        host, path = place(url)
        with exchange(connection, self.head(f"GET {path} HTTP/1.1", host)) as answer:
            if answer.status >= 400:
                raise Refused(answer.status)
            yield from stream(answer)

    def upload_in_the_end(
        self, server: str, batches: Sequence[bytes], pause: Callable[[], None]
    ) -> str:
        """As its task runner does: 20 attempts (with pauses from 3 s to 1 min)."""
        for _ in range(20):
            try:
                return self.upload(server, batches)
            except (Refused, IncompleteRead, ConnectionError):
                pause()
        raise Refused

    def import_in_the_end(
        self, url: str, opened: Callable[[Iterable[bytes]], History], pause: Callable[[], None]
    ) -> History:
        """As its sync worker does: 3 attempts (every 20 s), each straight into the importer."""
        for _ in range(3):
            try:
                with dial(url) as connection, closing(self.get(connection, url)) as body:
                    return opened(body)
            except (Refused, IncompleteRead, ConnectionError, BrokenBundle):
                pause()
        raise Refused

    @staticmethod
    def head(request: str, host: str) -> list[str]:
        return [request, "accept: */*", f"host: {host}"]

    @staticmethod
    def pieces(batches: Sequence[bytes]) -> Iterator[bytes]:
        """What comes out of a buffer of 4 KiB between the exporter's batches and the wire."""
        room = 4096
        for batch in batches:
            left = memoryview(batch)
            while left:
                piece, left = left[:room], left[room:]
                room = room - len(piece) or 4096
                yield bytes(piece)


class LibxmtpWithSlash(Libxmtp):
    """The mobile SDKs of 2025: `//upload` and `//files/{id}`."""

    name = "mobile SDKs of 2025, URL with a trailing slash"
    slash = "/"


class LibxmtpOf2024(Libxmtp):
    """Mobile SDKs of 2024: the whole file as one body, and a success is 2xx."""

    name = "mobile SDKs of 2024, URL with a trailing slash"
    form = "jsonl"
    slash = "/"

    def post(self, connection: socket.socket, server: str, batches: Sequence[bytes]) -> str:
        host, path = place(f"{server}/upload")
        body = b"".join(batches)
        head = self.head(f"POST {path} HTTP/1.1", host)
        with exchange(connection, [*head, f"content-length: {len(body)}"], [body]) as answer:
            if not 200 <= answer.status < 300:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"


class LibxmtpInABrowser(Client):
    """libxmtp's WASM build: fetch() of a Uint8Array, which has no Content-Type, from Chromium.

    So it is a simple request, without a preflight. Whether a page sees an answer at all, also one
    that is an error, depends on `Access-Control-Allow-Origin`.
    """

    name = "xmtp-js in a browser"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        status, text = self.fetch("POST", f"{server}/upload", b"".join(batches))
        if status >= 400:
            raise Refused(status)
        return f"{server}/files/{text.decode()}"

    def download(self, url: str) -> bytes:
        status, body = self.fetch("GET", url)
        if status >= 400:
            raise Refused(status)
        return body

    def fetch(self, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
        host, path = place(url)
        length = [] if body is None else [f"Content-Length: {len(body)}"]
        head = [
            f"{method} {path} HTTP/1.1",
            f"Host: {host}",
            "Connection: keep-alive",
            *length,
            'sec-ch-ua-platform: "Linux"',
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0.0.0 Safari/537.36",
            'sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"',
            "sec-ch-ua-mobile: ?0",
            "Accept: */*",
            f"Origin: {ORIGIN}",
            "Sec-Fetch-Site: same-site",
            "Sec-Fetch-Mode: cors",
            "Sec-Fetch-Dest: empty",
            f"Referer: {ORIGIN}/",
            "Accept-Encoding: gzip, deflate, br, zstd",
            "Accept-Language: en-US,en;q=0.9",
        ]
        with dial(url) as connection, exchange(connection, head, [body or b""]) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] in ("*", ORIGIN), "TypeError"
            return answer.status, b"".join(stream(answer))


class ReferenceNode(Client):
    """The reference's Node.js example: fetch() with a string, then without any header."""

    name = "the reference's Node.js example"
    form = "text"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        host, path = place(f"{server}/upload")
        body = b"".join(batches)
        head = self.head(f"POST {path} HTTP/1.1", host, "content-type: text/plain;charset=UTF-8")
        head.append(f"content-length: {len(body)}")
        with dial(server) as connection, exchange(connection, head, [body]) as answer:
            if not 200 <= answer.status < 300:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"

    def download(self, url: str) -> bytes:
        host, path = place(url)
        head = self.head(f"GET {path} HTTP/1.1", host)
        with dial(url) as connection, exchange(connection, head) as answer:
            if not 200 <= answer.status < 300:
                raise Refused(answer.status)
            return b"".join(stream(answer))

    @staticmethod
    def head(request: str, host: str, *more: str) -> list[str]:
        return [
            request,
            f"host: {host}",
            "connection: keep-alive",
            *more,
            "accept: */*",
            "accept-language: *",
            "sec-fetch-mode: cors",
            "user-agent: node",
            "accept-encoding: gzip, deflate",
        ]


class ReferenceNodeItself(ReferenceNode):
    """The same, by the Node.js that is installed here."""

    UPLOAD = """
        const parts = []
        for await (const part of process.stdin) parts.push(part)
        const body = Buffer.concat(parts).toString('utf-8')
        const answer = await fetch(process.argv[1] + '/upload', {method: 'POST', body})
        if (!answer.ok) process.exit(3)
        process.stdout.write(process.argv[1] + '/files/' + await answer.text())
    """
    DOWNLOAD = """
        const answer = await fetch(process.argv[1])
        if (!answer.ok) process.exit(3)
        if (answer.redirected || answer.headers.has('content-encoding')) process.exit(4)
        process.stdout.write(await answer.text())
    """

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        return self.node(self.UPLOAD, server, b"".join(batches)).decode()

    def download(self, url: str) -> bytes:
        return self.node(self.DOWNLOAD, url)

    def node(self, script: str, argument: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            ["node", "--input-type=module", "--eval", script, argument],
            input=stdin,
            capture_output=True,
            timeout=30,
            check=False,
        )
        if done.returncode:
            code = done.returncode
            raise Refused(code) if code == 3 else ConnectionError(done.stderr.decode())
        return done.stdout


class ReferencePython(Client):
    """The reference's Python example of April 2024, with requests itself; it wants exactly 200."""

    name = "the reference's Python example"
    signs = True

    def __init__(self) -> None:
        self.requests: Any = importlib.import_module("requests")  # it came with moto
        self.hmac = ""

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        self.hmac = hmac.new(SIGNING_KEY.encode(), body, "sha256").hexdigest()
        answer = self.ask("POST", f"{server}/upload", {"X-HMAC": self.hmac}, body)
        return f"{server}/files/{answer.text}"

    def download(self, url: str) -> bytes:
        proof = {"X-HMAC": self.hmac, "X-SIGNING-KEY": SIGNING_KEY.encode()}
        try:
            content: bytes = self.ask("GET", url, proof).content
        except self.requests.exceptions.ChunkedEncodingError as error:
            raise ConnectionError from error
        return content

    def ask(self, method: str, url: str, headers: Any, body: bytes | None = None) -> Any:
        with self.requests.Session() as session:
            session.trust_env = False
            answer = session.request(method, url, headers=headers, data=body)
        assert not answer.history
        assert "Content-Encoding" not in answer.headers
        if answer.status_code != 200:
            raise Refused(answer.status_code)
        return answer


class ReferenceCurl(Client):
    """The two lines of the reference's README: a form without a proof, then both headers."""

    name = "the reference's curl lines"
    signs = True

    def __init__(self) -> None:
        self.hmac = ""

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        self.hmac = hmac.new(SIGNING_KEY.encode(), body, "sha256").hexdigest()
        form = ["--request", "POST", "--form", "file=@-;filename=message_bundle.aes"]
        return f"{server}/files/{curl(f'{server}/upload', *form, stdin=body).decode()}"

    def download(self, url: str) -> bytes:
        proof = ["--header", f"X-HMAC: {self.hmac}", "--header", f"X-SIGNING-KEY: {SIGNING_KEY}"]
        return curl(url, *proof, "--output", "-")


def curl(url: str, *arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        ["curl", "--disable", "--silent", "--show-error", "--noproxy", "*", *arguments, url],
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise ConnectionError(done.returncode, done.stderr.decode())
    return done.stdout


class JdkHttpClient(Client):
    """java.net.http of JDK 11 and later, which offers HTTP/2 with every request."""

    name = "Java's HttpClient"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        with dial(server) as connection:
            return self.post(connection, server, b"".join(batches))

    def download(self, url: str) -> bytes:
        with dial(url) as connection:
            return b"".join(self.get(connection, url))

    def post(self, connection: socket.socket, server: str, body: bytes) -> str:
        host, path = place(f"{server}/upload")
        head = self.head(f"POST {path} HTTP/1.1", host, f"Content-Length: {len(body)}")
        with exchange(connection, head, [body]) as answer:
            if answer.status != 200:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"

    def get(self, connection: socket.socket, url: str) -> Generator[bytes, None, None]:
        host, path = place(url)
        with exchange(connection, self.head(f"GET {path} HTTP/1.1", host)) as answer:
            if answer.status != 200:
                raise Refused(answer.status)
            yield from stream(answer)

    @staticmethod
    def head(request: str, host: str, *length: str) -> list[str]:
        return [
            request,
            "Connection: Upgrade, HTTP2-Settings",
            *length,
            f"Host: {host}",
            "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
            "Upgrade: h2c",
            "User-Agent: Java-http-client/17.0.15",
        ]


class Http10(Client):
    """An old client: no Host, nothing chunked, and a body ends with the connection."""

    name = "HTTP/1.0"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        _, path = place(f"{server}/upload")
        request = f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        return f"{server}/files/{self.ask(server, request.encode() + body).decode()}"

    def download(self, url: str) -> bytes:
        _, path = place(url)
        return self.ask(url, f"GET {path} HTTP/1.0\r\n\r\n".encode())

    def ask(self, url: str, request: bytes) -> bytes:
        with dial(url) as connection:
            connection.sendall(request)
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
        if not re.match(rb"HTTP/1\.[01] 200 ", head):
            raise Refused(head)
        assert b"transfer-encoding" not in head.lower()
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        assert length is not None
        if len(body) != int(length[1]):
            raise IncompleteRead(body, int(length[1]) - len(body))
        return body


CLIENTS: list[Any] = [
    Libxmtp,
    LibxmtpWithSlash,
    LibxmtpOf2024,
    LibxmtpInABrowser,
    ReferenceNode,
    pytest.param(ReferenceNodeItself, marks=needs_node),
    ReferencePython,
    JdkHttpClient,
    Http10,
]
CURL = pytest.param(ReferenceCurl, marks=needs_curl)


# --- what they are put to -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(store: Store, s3: Any) -> Iterator[tuple[Service, Proxy]]:
    """A service for clients that prove nothing, and the proxy between it and its store."""
    with (
        Proxy(store.endpoint_url) as proxy,
        running_service(store, s3, endpoint_url=proxy.url, require_hmac=False) as service,
    ):
        yield service, proxy


@pytest.fixture
def faults(shared: tuple[Service, Proxy]) -> Iterator[list[Fault]]:
    _, proxy = shared
    yield proxy.faults
    proxy.faults.clear()


@pytest.fixture
def trusting(shared: tuple[Service, Proxy], faults: list[Fault]) -> Service:
    return shared[0]


@pytest.fixture(scope="module")
def short() -> History:
    return histories.invent(seed=5, size=300_000)


def sent_by(client: Client, history: History) -> tuple[Bundle, Sequence[bytes]]:
    """The bundle, and what this client makes of it."""
    bundle = seal(history, "jsonl" if client.form == "jsonl" else "archive")
    if client.form == "text":
        return bundle, [base64.b64encode(b"".join(bundle.batches))]
    return bundle, bundle.batches


@pytest.mark.parametrize("kind", [*CLIENTS, CURL])
def test_a_history_survives_its_trip(
    trusting: Service, service: Service, short: History, kind: type[Client]
) -> None:
    client = kind()
    bundle, batches = sent_by(client, short)
    url = client.upload((service if client.signs else trusting).url + client.slash, batches)
    assert re.fullmatch(r".*/files/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", url)
    fetched = client.download(url)
    assert fetched == b"".join(batches)
    sealed = base64.b64decode(fetched) if client.form == "text" else fetched
    assert bundle.opened(sealed) == bundle.history
    if not client.signs:
        assert Libxmtp().download(url) == fetched
        with pytest.raises(Refused, match="404"):
            Libxmtp().download(url[:-1] + "01"[url.endswith("0")])


@pytest.mark.parametrize("kind", [Libxmtp, CURL])
def test_a_long_history_survives_its_trip(
    trusting: Service, service: Service, kind: type[Client]
) -> None:
    """Two parts in S3; of the one client thousands of chunks, of the other a form after a 100."""
    bundle, client = seal(histories.invent(seed=6, size=9 * MIB)), kind()
    url = client.upload((service if client.signs else trusting).url, bundle.batches)
    assert bundle.opened(client.download(url)) == bundle.history


def test_one_connection_serves_all_of_a_clients_requests(trusting: Service, short: History) -> None:
    """A pool, or a proxy with one, keeps its connections; libxmtp itself opens one each time."""
    bundle, client = seal(short), Libxmtp()
    with dial(trusting.url) as connection:
        for _ in range(3):
            url = client.post(connection, trusting.url, bundle.batches)
            assert b"".join(client.get(connection, url)) == b"".join(bundle.batches)


def test_libxmtp_uploads_again_until_s3_is_back(
    trusting: Service, faults: list[Fault], short: History
) -> None:
    bundle = seal(short)
    before = len(trusting.objects())
    faults.append(Fault("PutObject", Respond(403, "AccessDenied"), times=None))
    failures: list[Fault] = []

    def pause() -> None:
        failures.append(faults.pop())

    url = Libxmtp().upload_in_the_end(trusting.url, bundle.batches, pause)
    assert len(failures) == 1
    assert bundle.opened(Libxmtp().download(url)) == short
    until(lambda: len(trusting.objects()) == before + 1)


def test_libxmtp_downloads_again_what_broke_off(
    trusting: Service, faults: list[Fault], short: History
) -> None:
    bundle = seal(short)
    url = Libxmtp().upload(trusting.url, bundle.batches)
    faults.append(Fault("GetObject", Truncate(1000), times=None))
    imported = Libxmtp().import_in_the_end(
        url, lambda body: histories.open_archive(body, bundle.key), faults.clear
    )
    assert imported == short
    assert not faults


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_body_that_breaks_off_ends_cleanly_for_no_client(
    trusting: Service, faults: list[Fault], short: History, kind: type[Client]
) -> None:
    """However often the service begins again where S3 broke off: 1000 bytes at a time are too few.

    curl's turn is when it resumes.
    """
    client = kind()
    _, batches = sent_by(client, short)
    url = client.upload(trusting.url + client.slash, batches)
    assert client.download(url) == b"".join(batches)
    faults.append(Fault("GetObject", Truncate(1000), times=None))
    with pytest.raises((IncompleteRead, ConnectionError)):
        client.download(url)


@needs_curl
@pytest.mark.parametrize("signed", [False, True])
def test_curl_resumes_a_download_that_was_cut(
    trusting: Service, tmp_path: Path, *, signed: bool
) -> None:
    bundle = random_bytes(8, 9 * MIB)
    proof = {
        "X-HMAC": hmac.new(SIGNING_KEY.encode(), bundle, "sha256").hexdigest(),
        "X-SIGNING-KEY": SIGNING_KEY,
    }
    headers = [part for name in proof for part in ("-H", f"{name}: {proof[name]}") if signed]
    bundle_id = trusting.upload(bundle, proof["X-HMAC"] if signed else None)
    out = tmp_path / "bundle"
    resume: list[str | Path] = [
        *headers,
        "--continue-at",
        "-",
        "--output",
        out,
        "--write-out",
        "%{http_code}",
    ]
    with Proxy(trusting.url) as way:
        way.faults.append(Fault(None, Truncate(len(bundle) * 4 // 10)))
        with pytest.raises(ConnectionError) as broken:
            curl(f"{way.url}/files/{bundle_id}", *resume)
        assert broken.value.args[0] == 18  # CURLE_PARTIAL_FILE
        assert out.stat().st_size == len(bundle) * 4 // 10
        assert curl(f"{way.url}/files/{bundle_id}", *resume) == b"206"
        assert way.requests[-1].sent == len(bundle) - len(bundle) * 4 // 10
    assert out.read_bytes() == bundle


def test_java_sends_a_body_that_is_no_second_request(trusting: Service) -> None:
    """Its offer of HTTP/2 is not taken, and what follows the head is the body and only that."""
    inside = b"\r\n\r\nDELETE /upload HTTP/1.1\r\nHost: x\r\n\r\n"
    bundle = inside + random_bytes(9, 200_000) + inside
    client = JdkHttpClient()
    with dial(trusting.url) as connection:
        for _ in range(3):
            url = client.post(connection, trusting.url, bundle)
            assert b"".join(client.get(connection, url)) == bundle
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_libxmtp_behind_a_slow_way(trusting: Service, short: History) -> None:
    """As toxiproxy's slicer and latency make it: pieces end anywhere, in a chunk's size too."""
    rng, bundle = random.Random(10), seal(histories.invent(seed=7, size=40_000))
    client = Libxmtp()
    host, path = place(f"{trusting.url}/upload")
    head = [*client.head(f"POST {path} HTTP/1.1", host), "transfer-encoding: chunked", "", ""]
    wire = "\r\n".join(head).encode() + b"".join(chunked(client.pieces(bundle.batches)))
    with dial(trusting.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while wire:
            cut = rng.choice((1, 2, 3, 500, 1500))
            connection.sendall(wire[:cut])
            wire = wire[cut:]
            time.sleep(0.002)
        with HTTPResponse(connection) as answer:
            answer.begin()
            bundle_id = answer.read().decode()
    with Proxy(trusting.url) as way:
        way.faults.append(Fault(None, Drip(200_000)))
        assert bundle.opened(client.download(f"{way.url}/files/{bundle_id}")) == bundle.history


def test_a_page_reads_every_error(
    trusting: Service, faults: list[Fault], serve: Serve, short: History
) -> None:
    """From another origin, by status and by problem code: `fetch` has checked that it may."""
    page = LibxmtpInABrowser()

    def problem(answer: tuple[int, bytes]) -> tuple[int, str]:
        status, body = answer
        assert json.loads(body)["status"] == status
        return status, json.loads(body)["code"]

    url = page.upload(trusting.url, seal(short).batches)
    signed = trusting.upload(b"bundle", "0" * 64)
    missing = url[:-1] + "01"[url.endswith("0")]
    assert problem(page.fetch("GET", missing)) == (404, "not_found")
    assert problem(page.fetch("GET", f"{trusting.url}/files/{signed}")) == (400, "missing_header")
    assert problem(page.fetch("POST", f"{trusting.url}/upload", b"")) == (400, "empty_bundle")
    faults.append(Fault(None, Respond(403, "AccessDenied"), times=None))
    down = (503, "storage_unavailable")
    assert problem(page.fetch("GET", url)) == down
    assert problem(page.fetch("POST", f"{trusting.url}/upload", b"bundle")) == down
    narrow = serve(require_hmac=False, max_bundle_size="1MiB").url
    too_much = page.fetch("POST", f"{narrow}/upload", bytes(2 * MIB))
    assert problem(too_much) == (413, "bundle_too_large")


@pytest.mark.parametrize("coding", ["gzip", "gzip, deflate, br, zstd", "*", "identity;q=0, gzip"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_neither_a_redirect_nor_a_coding(trusting: Service, slash: str, coding: str) -> None:
    """As `exchange` sees to, whatever is asked for; also where it would pay, as with zeros."""

    def ask(method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        head = [f"{method} {slash}{path} HTTP/1.1", "Host: x", f"Accept-Encoding: {coding}"]
        head.append(f"Content-Length: {len(body)}")
        with dial(trusting.url) as connection, exchange(connection, head, [body]) as answer:
            return answer.status, b"".join(stream(answer))

    bundle = bytes(100_000)
    bundle_id = ask("POST", "/upload", bundle)[1].decode()
    for path in (f"/files/{bundle_id}", f"/files/{bundle_id}/", f"/files//{bundle_id.upper()}"):
        assert ask("GET", path) == (200, bundle)
    for path in ("/healthz", "/files/", "/upload/", "/upload/x"):
        assert ask("GET", path)[0] in (200, 404, 405)


def test_the_histories_themselves(short: History) -> None:
    """What opens them is no proof of a trip unless it refuses what is not whole."""
    assert len(short.groups) == 3
    assert sum(len(message.decrypted_message_bytes) for message in short.messages) >= 300_000
    bundle, older = seal(short), seal(short, "jsonl")
    sealed, [older_sealed] = b"".join(bundle.batches), older.batches
    assert bundle.opened(sealed) == short
    assert histories.open_archive(Libxmtp.pieces(bundle.batches), bundle.key) == short
    assert older.opened(older_sealed) == older.history
    assert max(map(len, Libxmtp.pieces(bundle.batches))) == 4096
    for cut in [*range(20), *range(1000, len(sealed), 9973), len(sealed) - 1]:
        with pytest.raises(BrokenBundle):
            bundle.opened(sealed[:cut])
        with pytest.raises(BrokenBundle):
            older.opened(older_sealed[:cut])
    flipped = bytes([*sealed[:5000], sealed[5000] ^ 1, *sealed[5001:]])
    with pytest.raises(BrokenBundle):
        bundle.opened(flipped)
    with pytest.raises(BrokenBundle):
        histories.open_archive([sealed], bytes(32))


# --- the page -------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_pages_compose_file(monkeypatch: pytest.MonkeyPatch) -> None:
    [fragment] = blocks("yaml")
    services: dict[str, Any] = yaml.safe_load(fragment)["services"]
    localstack = yaml.safe_load((ROOT / "localstack.yml").read_text())["services"]["localstack"]
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    assert services["localstack"]["image"] == localstack["image"]
    history = services["history-server"]
    assert history["ports"] == ["5558:5558"]
    assert history["environment"] == services["init-bucket"]["environment"]
    assert history["environment"]["HISTORY_REQUIRE_HMAC"] == "false"
    assert (history["command"], services["init-bucket"]["command"]) == (["serve"], ["init-bucket"])
    interpreter, script = history["healthcheck"]["test"][1], history["healthcheck"]["test"][-1]
    assert f'ENTRYPOINT ["{interpreter}"' in dockerfile
    assert "http://127.0.0.1:5558/healthz" in script
    for found in services.values():
        assert set(found.get("depends_on", ())) <= services.keys()
    for name, value in history["environment"].items():
        monkeypatch.setenv(name, value)
    assert not load().require_hmac


def test_every_setting_that_the_page_names_exists() -> None:
    named = {name.lower() for name in re.findall(r"\bHISTORY_([A-Z_]+)", PAGE)}
    assert "require_hmac" in named
    assert named <= Settings.model_fields.keys()


def test_the_pages_table_names_the_clients_of_this_file() -> None:
    table = PAGE[PAGE.index("| client |") :]
    rows = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)[1:]
    kinds: list[type[Client]] = [getattr(kind, "values", [kind])[0] for kind in [*CLIENTS, CURL]]
    assert set(rows) == {kind.name for kind in kinds}


@needs_curl
def test_the_pages_conversation_with_the_full_proof(
    trusting: Service, service: Service, tmp_path: Path
) -> None:
    [conversation] = blocks("sh")[1:]
    for server in (trusting, service):
        (tmp_path / "bundle.bin").write_bytes(os.urandom(100_000))
        (tmp_path / "fetched.bin").unlink(missing_ok=True)
        said = subprocess.run(
            ["bash", "-euc", conversation.replace("http://localhost:5558", server.url)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (said.returncode, said.stdout) == (0, "identical\n"), said.stderr
