"""The real nginx configuration: before real replicas, and before ports where nobody answers."""

import hmac
import json
import re
import select
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from service.middleware import RESPONSE_HEADERS
from service.problems import STATUS
from service.settings import Settings
from tests import spellings, stack
from tests.clients import dial, raw_request, read_all, read_answer, sign, until
from tests.conftest import installed, s3_client
from tests.proxy import Fault, Proxy, Stall
from tests.stack import NGINX, Replica, Stack
from tests.stores import Store, free_ports

END = b"Host: x\r\nConnection: close\r\n\r\n"

# The replicas are started once, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")

CONFIGURATION = (NGINX / "nginx.conf").read_text()
MIB = 1 << 20
KEY = "a signing key"
BUNDLE = bytes(range(256)) * (12 * MIB // 256)
PROOF = sign(KEY, BUNDLE)


@dataclass
class Front:
    """nginx, its replicas, and what lies behind and what comes out of them."""

    stack: Stack
    http: httpx.Client
    store: Proxy
    s3: Any
    bucket: str
    output: Path

    @property
    def url(self) -> str:
        return self.stack.url

    def upload(self, content: bytes = BUNDLE) -> str:
        answer = self.http.post("/upload", content=content, headers=sign(KEY, content))
        assert answer.status_code == 200, answer.text
        return answer.text

    def begin_upload(self, declared: int = len(BUNDLE)) -> socket.socket:
        """An upload of which the half has been sent."""
        connection = dial(self.url)
        head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % declared
        connection.sendall(head + BUNDLE[: declared // 2])
        return connection

    def reaches(self, new: Replica) -> bool:
        """Whether nginx asks it again: nobody else asks a replica that is new for this."""
        assert self.http.get("/healthz").status_code == 200
        return 'route="/healthz"' in httpx.get(f"{new.url}/metrics", trust_env=False).text

    def busy(self) -> Replica:
        """The replica that holds bytes of a bundle."""
        found: list[Replica] = []

        def look() -> bool:
            found[:] = [it for it in self.stack.replicas if counted(it, "memory_used_bytes") > 0]
            return bool(found)

        until(look)
        return found[0]


def counted(replica: Replica, metric: str) -> float:
    """The sum of a metric over its labels."""
    page = httpx.get(f"{replica.url}/metrics", trust_env=False).text
    return sum(map(float, re.findall(rf"^history_{metric}(?:{{.*}})? (\S+)$", page, re.MULTILINE)))


@pytest.fixture(scope="module")
def front(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Have nginx and two replicas, with a proxy before their store that can make it slow."""
    installed(stack.find_nginx)
    output = tmp_path_factory.mktemp("nginx") / "output.log"
    with Proxy(store.endpoint_url) as proxy, output.open("ab") as log:
        behind = Store("proxy", proxy.url, store.access_key, store.secret_key, store.region)
        bucket = f"history-{uuid4()}"
        variables = {
            "HISTORY_BUCKET": bucket,
            "HISTORY_PART_SIZE": "5MiB",
            "HISTORY_MAX_BUNDLE_SIZE": "16MiB",
            "HISTORY_DRAIN_DELAY": "0s",
            "HISTORY_READ_TIMEOUT": "3s",
        }
        with (
            stack.stack(behind, variables, output=log) as running,
            httpx.Client(
                base_url=running.url,
                headers={"Origin": "https://app.example"},
                trust_env=False,
                timeout=60,
            ) as http,
        ):
            s3 = s3_client(store)
            yield Front(running, http, proxy, s3, bucket, output)


@pytest.fixture(autouse=True)
def _as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start a replica that a test has killed, and mend the store."""
    yield
    if "front" in request.fixturenames:
        front: Front = request.getfixturevalue("front")
        front.store.faults.clear()
        for replica in front.stack.replicas:
            if replica.code is not None:
                replica.start()
                replica.ready()
                until(partial(front.reaches, replica), seconds=10)


@dataclass
class Alone:
    """nginx in front of one listening socket, or of none: what comes of a request it decides."""

    url: str
    behind: socket.socket
    output: Path

    def reached(self) -> bool:
        """Whether a connection has come through."""
        try:
            self.behind.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def take(self) -> socket.socket:
        """The next connection that comes through."""
        waiting, _, _ = select.select([self.behind], [], [], 5)
        assert waiting, "nothing has come through"
        connection, _ = self.behind.accept()
        connection.settimeout(5)
        return connection

    def answer(self) -> dict[str, str]:
        """Answer the next request that comes through with 204; its header fields."""
        with self.take() as connection, connection.makefile("rb") as received:
            lines = [line.decode().rstrip() for line in iter(received.readline, b"\r\n")]
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        return dict(line.split(": ", 1) for line in lines[1:])


@contextmanager
def alone_at(output: Path, port: int, listen: str = "") -> Iterator[Alone]:
    installed(stack.find_nginx)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=512) as behind,
        output.open("ab") as log,
    ):
        behind.settimeout(0)
        ports = [behind.getsockname()[1]] * 2
        with stack.balancer(ports, port=port, listen=listen, output=log) as nginx:
            yield Alone(nginx.url, behind, output)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    with alone_at(tmp_path / "output.log", 0) as running:
        yield running


TRUSTED, STRANGER = "127.0.0.2", "127.0.0.3"


@pytest.fixture
def trusting(tmp_path: Path) -> Iterator[Alone]:
    """It has one trusted proxy, named where the README says."""
    port = free_ports(1)[0]
    listen = f"listen 127.0.0.1:{port};\nset_real_ip_from {TRUSTED};\n"
    with alone_at(tmp_path / "output.log", port, listen) as running:
        yield running


def problem(answer: httpx.Response, status: int, code: str) -> None:
    """What every error looks like, whoever makes it."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["X-Request-Id"]
    assert (answer.json()["status"], answer.json()["code"]) == (status, code)
    assert ("Retry-After" in answer.headers) == (status in (429, 502, 503, 504))


# -- The files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["listen.conf", "listen-tls.conf"])
def test_the_configuration_is_one(listen: str, tmp_path: Path) -> None:
    program = installed(stack.find_nginx)
    make_certificate(tmp_path)
    port = str(free_ports(1)[0])
    lines = re.sub(r"\b(5558|443)\b", port, (NGINX / listen).read_text())
    stack.configure(tmp_path, re.sub(r"listen \[::\].*", "", lines), free_ports(2))
    tested = subprocess.run(
        [*stack.command(program, tmp_path), "-t"], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr


def make_certificate(folder: Path) -> Path:
    """Put a certificate for localhost, and its key, where listen-tls.conf looks for them."""
    (folder / "tls").mkdir()
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
    command += "-subj /CN=localhost -addext subjectAltName=DNS:localhost "
    command += "-keyout tls/key.pem -out tls/fullchain.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "tls" / "fullchain.pem"


def test_its_limits_are_those_of_the_service() -> None:
    config = Settings(bucket="a-bucket")

    def seconds(name: str) -> int:
        found = re.search(rf"^ *{name} +(\d+)s;", CONFIGURATION, re.MULTILINE)
        assert found, name
        return int(found[1])

    assert f"client_max_body_size {(config.max_bundle_size >> 10) + 64}k;" in CONFIGURATION
    assert seconds("client_body_timeout") > config.read_timeout
    assert seconds("send_timeout") > config.read_timeout
    assert seconds("worker_shutdown_timeout") >= config.drain_delay + config.drain_timeout + 5
    idle = re.search(r"keepalive_timeout (\d+)s", (NGINX / "upstream.conf").read_text())
    assert idle
    assert int(idle[1]) < config.drain_delay


def test_every_error_of_nginx_is_a_problem() -> None:
    table = CONFIGURATION[CONFIGURATION.index("map $status $history_problem") :]
    problems = {
        int(status): json.loads(body)
        for status, body in re.findall(r"^ {8}(\d+) '(.*)';$", table, re.MULTILINE)
    }
    handled = re.search(r"error_page ([\d ]+) /problem;", CONFIGURATION)
    assert handled
    assert {*map(int, handled[1].split()), 431} - {500} == problems.keys()
    for status, body in problems.items():
        assert body.keys() == {"type", "title", "status", "detail", "code"}
        assert body["status"] == status
        assert STATUS.get(body["code"], status) == status
    page = (NGINX.parent / "README.md").read_text()
    assert {body["code"] for body in problems.values()} <= {*STATUS, *re.findall(r"`(\w+)`", page)}
    exposed = re.search(r'Access-Control-Expose-Headers "(.*)"', CONFIGURATION)
    assert exposed
    assert set(exposed[1].split(", ")) <= set(RESPONSE_HEADERS)


# -- Through it -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("target", spellings.INTERNAL)
def test_no_spelling_reaches_what_stays_inside(front: Front, target: str) -> None:
    """Not even one that the replica itself would understand."""
    answer = raw_request(front.url, f"GET {target} HTTP/1.1\r\n".encode() + END)
    assert int(answer.split(b" ")[1]) in {400, 404}
    assert b"application/problem+json\r\n" in answer
    assert b"history_" not in answer
    assert b"ready\n" not in answer


@pytest.mark.parametrize("target", spellings.NOT_PRINTABLE)
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


def on_disk(nginx: stack.Nginx) -> set[Path]:
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


# -- When a replica goes --------------------------------------------------------------------------


def test_a_get_goes_on_at_the_other_replica(front: Front) -> None:
    bundle_id, proof = front.upload(b"bundle"), sign(KEY, b"bundle")
    front.stack.replicas[0].send(signal.SIGKILL)
    front.stack.replicas[0].wait()
    for _ in range(20):
        assert front.http.get(f"/files/{bundle_id}", headers=proof).content == b"bundle"
        assert front.upload(b"bundle"), "nothing of it was sent to the one that is gone"
    assert front.http.delete(f"/files/{bundle_id}", headers=proof).status_code == 204
    # And no log line tells whole ids.
    assert bundle_id[:8] in front.output.read_text()
    assert bundle_id not in front.output.read_text()


def test_a_get_that_was_sent_is_tried_again(front: Front) -> None:
    bundle_id = front.upload(b"bundle")
    proof = "".join(f"{name}: {value}\r\n" for name, value in sign(KEY, b"bundle").items())
    request = f"GET /files/{bundle_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{proof}\r\n"
    for answer in meanwhile_killed(front, request.encode()):
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\nbundle")


def test_a_post_that_was_sent_is_not(front: Front) -> None:
    """Also where nginx has all of its body, and could."""
    other = front.stack.replicas[0]
    before = counted(other, "received_bytes_total")
    request = b"POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answers = meanwhile_killed(front, request + b"Content-Length: 6\r\n\r\nbundle")
    statuses = Counter(int(answer.split()[1]) for answer in answers)
    assert statuses.keys() == {200, 502}
    assert counted(other, "received_bytes_total") == before + 6 * statuses[200]


def meanwhile_killed(front: Front, request: bytes) -> list[bytes]:
    """The answers to four requests at once, some of which reach a replica that hangs and dies."""
    hanging = front.stack.replicas[1]
    with ExitStack() as connections:
        with stopped(hanging):
            asked = [connections.enter_context(dial(front.url)) for _ in range(4)]
            for connection in asked:
                connection.sendall(request)
            time.sleep(0.5)
            hanging.send(signal.SIGKILL)
        return [read_all(connection) for connection in asked]


@contextmanager
def stopped(replica: Replica) -> Iterator[None]:
    replica.send(signal.SIGSTOP)
    try:
        yield
    finally:
        replica.send(signal.SIGCONT)


def test_a_post_that_has_begun_is_not_sent_twice(front: Front) -> None:
    with front.begin_upload() as connection:
        replica = front.busy()
        other = next(it for it in front.stack.replicas if it is not replica)
        before = counted(other, "received_bytes_total")
        replica.send(signal.SIGKILL)
        replica.wait()
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"\r\nRetry-After: 5\r\n" in head
    assert json.loads(body)["code"] == "bad_gateway"
    assert counted(other, "received_bytes_total") == before
    assert counted(other, "memory_used_bytes") == 0


# -- Without any replica --------------------------------------------------------------------------


def test_slow_heads_reach_no_replica(alone: Alone) -> None:
    """50 clients that drip their heads; the one that gets to its end comes through."""
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nX-HMAC: "
    with ExitStack() as connections:
        slow = [connections.enter_context(dial(alone.url)) for _ in range(50)]
        for at in range(len(head)):
            for connection in slow:
                connection.sendall(head[at : at + 1])
        time.sleep(0.3)
        assert not alone.reached()
        slow[0].sendall(b"\r\n\r\n")
        until(alone.reached)
        assert not alone.reached()


@pytest.mark.soak
def test_slow_heads_are_cut_in_time(alone: Alone) -> None:
    with dial(alone.url) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert 14 < time.monotonic() - began < 17


def test_more_transfers_at_once_than_one_address_may(alone: Alone) -> None:
    with ExitStack() as connections:
        for _ in range(128):
            connection = connections.enter_context(dial(alone.url))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with httpx.Client(base_url=alone.url, trust_env=False) as http:
            until(lambda: http.get("/metrics").status_code == 404)
            problem(http.post("/upload", content=BUNDLE), 429, "too_many_requests")
        others = httpx.HTTPTransport(local_address="127.0.0.9")
        with (
            httpx.Client(base_url=alone.url, transport=others, timeout=0.5) as http,
            pytest.raises(httpx.ReadTimeout),  # it waits for the replica
        ):
            http.get("/")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        (TRUSTED, "203.0.113.5", "203.0.113.5"),
        (TRUSTED, "2001:db8::5", "2001:db8::5"),
        # What the client had written itself stands before what the proxy adds.
        (TRUSTED, "198.51.100.7, 203.0.113.5", "203.0.113.5"),
        # Two proxies, one behind the other.
        (TRUSTED, f"203.0.113.5, {TRUSTED}", "203.0.113.5"),
        (TRUSTED, f"203.0.113.5, {STRANGER}", STRANGER),
        (TRUSTED, None, TRUSTED),
        (TRUSTED, "nobody", TRUSTED),
        (STRANGER, "203.0.113.5", STRANGER),
        (STRANGER, f"203.0.113.5, {TRUSTED}", STRANGER),
    ],
)
def test_the_client_is_whom_a_trusted_proxy_names(
    trusting: Alone, peer: str, forwarded: str | None, client: str
) -> None:
    """In the log, and for the replicas."""
    with dial(trusting.url, peer) as connection:
        connection.sendall(get("/", forwarded, close=True))
        fields = trusting.answer()
        assert read_all(connection).startswith(b"HTTP/1.1 204 ")
    assert fields["X-Forwarded-For"] == client
    until(lambda: f'"client":"{client}"' in trusting.output.read_text())


def get(path: str, forwarded: str | None, *, close: bool = False) -> bytes:
    """A GET as a proxy passes it on."""
    lines = [f"GET {path} HTTP/1.1", "Host: x"]
    lines += [f"X-Forwarded-For: {forwarded}"] if forwarded else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode()


def test_the_limits_are_those_of_the_client_that_a_trusted_proxy_names(trusting: Alone) -> None:
    with ExitStack() as connections:

        def ask(peer: str, forwarded: str) -> socket.socket:
            connection = connections.enter_context(dial(trusting.url, peer))
            connection.sendall(get("/", forwarded))
            return connection

        for _ in range(128):
            ask(TRUSTED, "203.0.113.5")
            connections.enter_context(trusting.take())
        assert read_answer(ask(TRUSTED, "203.0.113.5")).startswith(b"HTTP/1.1 429 ")
        for peer, forwarded in ((TRUSTED, "203.0.113.6"), (STRANGER, "203.0.113.5")):
            ask(peer, forwarded)
            connections.enter_context(trusting.take())


def test_no_stranger_escapes_the_limits_by_other_names(trusting: Alone) -> None:
    with ExitStack() as connections:
        for number in range(129):
            connection = connections.enter_context(dial(trusting.url, STRANGER))
            connection.sendall(get("/", f"203.0.113.{number}"))
            if number < 128:
                connections.enter_context(trusting.take())
        assert read_answer(connection).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize("number", [0, 1])
def test_a_replica_that_has_come_back_is_asked_soon(tmp_path: Path, number: int) -> None:
    """Also where it is the only one, after many failures."""
    installed(stack.find_nginx)
    ports = free_ports(2)
    with (
        (tmp_path / "output.log").open("ab") as log,
        stack.balancer(ports, output=log) as nginx,
        httpx.Client(base_url=nginx.url, trust_env=False) as http,
    ):
        for _ in range(20):
            problem(http.get("/"), 502, "bad_gateway")
        with socket.create_server(("127.0.0.1", ports[number])) as behind:

            def asked() -> bool:
                with dial(nginx.url) as connection:
                    connection.sendall(get("/", None))
                    ready, _, _ = select.select([behind, connection], [], [], 5)
                    return behind in ready

            until(asked, seconds=3)


def test_tls(tmp_path: Path) -> None:
    """As listen-tls.conf has it: forward secrecy, nothing in the clear, and no way back to it."""
    installed(stack.find_nginx)
    certificate = make_certificate(tmp_path)
    port = free_ports(1)[0]
    lines = (NGINX / "listen-tls.conf").read_text().replace("tls/", f"{tmp_path}/tls/")
    lines = re.sub(r"listen \[::\].*", "", lines).replace(
        "listen 443 ", f"listen 127.0.0.1:{port} "
    )
    with alone_at(tmp_path / "output.log", port, lines) as running:

        def connect(version: ssl.TLSVersion, ciphers: str = "DEFAULT") -> ssl.SSLSocket:
            context = ssl.create_default_context(cafile=certificate)
            context.minimum_version = context.maximum_version = version
            context.set_ciphers(ciphers)
            return context.wrap_socket(dial(running.url), server_hostname="localhost")

        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            with connect(version) as connection:
                connection.sendall(get("/", None, close=True))
                assert running.answer()["X-Forwarded-Proto"] == "https"
                answer = read_all(connection)
                assert answer.startswith(b"HTTP/1.1 204 ")
                assert b"\r\nStrict-Transport-Security: max-age=31536000\r\n" in answer
                session = connection.session
        # With TLS 1.3 a session in the server's cache looks like a ticket, too.
        assert session is not None
        assert not session.has_ticket
        for weak in ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA"):
            with pytest.raises(ssl.SSLError):
                connect(ssl.TLSVersion.TLSv1_2, weak).close()
        # No redirect: whoever says his keys in the clear is not invited to say them again.
        assert raw_request(running.url, get("/", None)).startswith(b"HTTP/1.1 400 ")


def test_more_requests_than_one_address_may(alone: Alone) -> None:
    alone.behind.close()
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with dial(alone.url) as connection:
        connection.sendall(request * 899 + last)
        answers = re.findall(rb"HTTP/1.1 (\d+)", read_all(connection))
    assert len(answers) == 900
    assert set(answers[:500]) == {b"502"}
    assert set(answers) == {b"502", b"429"}
    with httpx.Client(base_url=alone.url, trust_env=False) as http:
        answer = http.get("/healthz")
        while answer.status_code == 429:
            problem(answer, 429, "too_many_requests")
            answer = http.get("/healthz")
        problem(answer, 502, "bad_gateway")
