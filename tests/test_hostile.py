"""Misbehaving clients: what they do is bounded, and whoever behaves is served as before."""

import asyncio
import os
import select
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import repeat
from typing import Any
from uuid import uuid4

import h11
import httpx
import pytest

from service import pace
from tests import load
from tests.attackers import Attack, attacking
from tests.clients import dial, raw_request, read_all, read_answer, sign, until
from tests.conftest import SMALL_PART, Serve, Service, aws_environment
from tests.stores import Store
from tests.test_cli import serving
from tests.test_server import needs_proc, server_peers
from tests.test_wire import problem_code

KEY = load.KEY
MIB = 1 << 20
UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"

HEADS = "GET /healthz HTTP/1.1\r\nX-Endless: "
BODIES = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * 1024}\r\n\r\n"


@contextmanager
def replica(store: Store, s3: Any) -> Iterator[str]:
    """The service with its default settings, as a process."""
    bucket = f"history-{uuid4()}"
    s3.create_bucket(Bucket=bucket)
    with (
        aws_environment(store) as variables,
        serving(HISTORY_BUCKET=bucket, **variables) as (url, _, _),
    ):
        yield url


def latencies(url: str, *, count: int, seconds: float = 0) -> list[float]:
    """Small uploads and downloads by turns, so many at least and for so long, in order of time."""
    took, ids = list[float](), list[str]()
    proof = sign(KEY, b"bundle")
    ends = time.monotonic() + seconds
    with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=60) as http:
        while len(took) < count or time.monotonic() < ends:
            began = time.monotonic()
            if len(took) % 2:
                answer = http.get(f"/files/{ids[-1]}", headers=proof)
                assert answer.content == b"bundle"
            else:
                answer = http.post("/upload", content=b"bundle", headers=proof)
                ids.append(answer.text)
            took.append(time.monotonic() - began)
            assert answer.status_code == 200
    return sorted(took)


def in_words(took: list[float]) -> str:
    median, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
    return f"{len(took)} requests, median {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"


@pytest.mark.soak
def test_500_slow_heads_and_bodies_at_full_size(store: Store, s3: Any) -> None:
    """Byte by byte, for longer than the service puts up with any of them."""
    with replica(store, s3) as url:
        latencies(url, count=20)
        before = latencies(url, count=300)
        with attacking(url, Attack(250, HEADS), Attack(250, BODIES)) as attackers:
            during = latencies(url, count=300, seconds=20)
            heads, bodies = attackers.stop()
    print(f"\nalone: {in_words(before)}\nunder attack: {in_words(during)}")
    print(f"slow heads: {heads}\nslow bodies: {bodies}")
    assert set(heads.counts) == {"held", "reset"}
    assert set(bodies.counts) == {"held", "408"}
    assert min(heads.counts["reset"], bodies.counts["408"]) >= 250
    assert statistics.quantiles(during, n=100)[98] < 5 * statistics.quantiles(before, n=100)[98]


def test_slow_heads_and_bodies(service: Service) -> None:
    latencies(service.url, count=4)
    before = latencies(service.url, count=20)
    with attacking(service.url, Attack(50, HEADS), Attack(50, BODIES)) as attackers:
        during = latencies(service.url, count=20)
        heads, bodies = attackers.stop()
    print(f"alone: {in_words(before)}; under attack: {in_words(during)}")
    assert heads.counts == bodies.counts == {"held": 50}
    assert statistics.median(during) < 5 * statistics.median(before)


def sleeper(service_url: str, bundle: bytes) -> str:
    """The request of a download that is not going to be read."""
    proof = sign(KEY, bundle)
    answer = httpx.post(
        f"{service_url}/upload", content=bundle, headers=proof, trust_env=False, timeout=30
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
    return f"GET /files/{answer.text} HTTP/1.1\r\nHost: x\r\n{head}\r\n"


Transfer = tuple[float, str, int, float]
"""A good client's: the second when it began, what it was, its status, and how long it took."""


@pytest.mark.soak
def test_32_that_trickle_and_32_that_never_read_at_full_size(store: Store, s3: Any) -> None:
    """The uploads alone exhaust the budget of 256 MiB; 15 s later, all is as before."""
    with replica(store, s3) as url:
        request = sleeper(url, bytes(20 * MIB))
        alone = asyncio.run(good_clients(url, seconds=4))
        trickle = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {9 * MIB}\r\n\r\n"
        with attacking(
            url,
            Attack(32, request, byte="", again=False),
            Attack(32, trickle, every=29, again=False),
        ) as attackers:
            transfers = asyncio.run(good_clients(url, seconds=25))
            sleepers, trickles = attackers.stop(within=10)
    print(f"\nreaders that do not: {sleepers}\nuploads that trickle: {trickles}")
    print(f"alone: {slowest(alone)}")
    for second in range(25):
        print(f"from {second:2} s: {slowest([it for it in transfers if int(it[0]) == second])}")
    assert sleepers.counts == {"reset": 32}
    assert trickles.counts == {"408": 32}
    assert {status for _, _, status, _ in transfers} <= {200, 503}
    late = [it for it in transfers if it[0] >= 15]
    assert {status for _, _, status, _ in late} == {200}
    assert all(began + took < 15 for began, _, _, took in transfers if began < 13)
    for kind in {kind for _, kind, *_ in late}:
        usual = max(took for _, it, _, took in alone if it == kind)
        assert max(took for _, it, _, took in late if it == kind) < max(5 * usual, 1)


async def good_clients(url: str, *, seconds: float) -> list[Transfer]:
    """One of each kind, again and again."""
    loop = asyncio.get_running_loop()
    small, large = os.urandom(100_000), os.urandom(9 * MIB)
    answer = await load.upload(url, small)
    began, transfers = loop.time(), list[Transfer]()
    bundle_id = answer.body.decode()
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:

        async def declared() -> int:
            return (await http.post("/upload", content=small)).status_code

        async def unknown() -> int:
            return (await load.upload(url, small)).status

        async def multipart() -> int:
            return (await load.upload(url, large)).status

        async def fetched() -> int:
            answer = await load.download(url, bundle_id, small)
            assert answer.status != 200 or answer.body == small
            return answer.status

        async def repeated(transfer: Callable[[], Any]) -> None:
            while (at := loop.time() - began) < seconds:
                status = await transfer()
                transfers.append((at, transfer.__name__, status, loop.time() - began - at))
                await asyncio.sleep(0.2)

        await asyncio.gather(*map(repeated, (declared, unknown, multipart, fetched)))
    return transfers


def slowest(transfers: list[Transfer]) -> str:
    """Of each kind, how many had which status, and the longest of them."""
    kinds = sorted({(kind, status) for _, kind, status, _ in transfers})
    times = {it: [took for _, *kind, took in transfers if tuple(kind) == it] for it in kinds}
    return ", ".join(f"{len(times[it])} {it[0]} {it[1]} ≤ {max(times[it]):.2f} s" for it in kinds)


def test_who_trickles_or_never_reads_gives_way(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uploads hold all there is, until they have had their time."""
    monkeypatch.setattr(pace, "GRACE", 1.0)
    service = serve(memory_budget=2 * SMALL_PART, part_size=SMALL_PART, read_timeout="1s")
    request = sleeper(service.url, bytes(SMALL_PART + MIB))
    trickle = f"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {SMALL_PART}\r\n\r\n"
    with attacking(
        service.url,
        Attack(2, request, byte="", again=False),
        Attack(2, trickle, again=False),
    ) as attackers:
        began = time.monotonic()
        assert service.http.post("/upload", content=bytes(SMALL_PART)).status_code == 200
        print(f"served after {time.monotonic() - began:.2f} s")
        sleepers, trickles = attackers.stop(within=10)
    print(f"readers that do not: {sleepers}; uploads that trickle: {trickles}")
    assert sleepers.counts == {"reset": 2}
    assert trickles.counts == {"408": 2}


def send_until_answered(connection: socket.socket, pieces: Iterator[bytes]) -> int:
    """Send until an answer or an end shows; how many bytes that took, 64 MiB at most."""
    sent = 0
    for piece in pieces:
        if select.select([connection], [], [], 0)[0]:
            break
        try:
            connection.sendall(piece)
        except ConnectionError:
            break
        sent += len(piece)
        assert sent <= 64 * MIB, "nobody stopped it"
    return sent


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ENDLESS = {
    "header": (b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: ", b"x" * 4096, None),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: x\r\n" * 700, None),
    "trailers": (UPLOAD + CHUNKED + chunk(b"bundle") + b"0\r\n", b"X: x\r\n" * 700, None),
    "chunk extension": (UPLOAD + CHUNKED + b"6;", b"x" * 4096, None),
    "preamble": (UPLOAD + FORM + CHUNKED, chunk(b"\r\n" * 4096), b"malformed_form"),
    "form header": (
        UPLOAD + FORM + CHUNKED + chunk(b"--b\r\nX-Endless: "),
        chunk(b"x" * 4096),
        b"malformed_form",
    ),
    "form parts": (
        UPLOAD + FORM + CHUNKED,
        chunk(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 50),
        b"malformed_form",
    ),
    "epilogue": (
        UPLOAD
        + FORM
        + CHUNKED
        + chunk(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'),
        chunk(b"x" * 4096),
        b"malformed_form",
    ),
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_what_has_no_end_is_ended(service: Service, endless: str) -> None:
    """After some 64 KiB beside what the kernels hold, and it leaves nothing."""
    service.clear()
    beginning, piece, code = ENDLESS[endless]
    began = time.monotonic()
    with dial(service.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        connection.sendall(beginning)
        sent = send_until_answered(connection, repeat(piece))
        answer = b""
        with suppress(ConnectionResetError, h11.RemoteProtocolError):
            answer = read_answer(connection)
    print(f"ended after {sent >> 10} KiB and {time.monotonic() - began:.2f} s")
    assert sent < 16 * MIB
    if code is None:
        assert answer[:10] in {b"", b"HTTP/1.1 4"}
    else:
        assert problem_code(answer) == code
    until(lambda: not service.objects() and not service.multipart_uploads())


def parsed(received: bytes) -> list[tuple[int, bytes]]:
    """Status and body of one answer after the other, all of them to GET or POST."""
    answers = []
    while received:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client.receive_data(received)
        head = client.next_event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        answers.append((head.status_code, body))
        received, _ = client.trailing_data
    return answers


LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


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


def test_a_length_shorter_than_what_comes(service: Service) -> None:
    """So much is the bundle; the rest is no request, and ends the connection."""
    [upload, garbage] = parsed(
        raw_request(service.url, UPLOAD + b"Content-Length: 6\r\n\r\nbundle and what follows\r\n")
    )
    assert (upload[0], garbage[0]) == (200, 400)
    assert service.fetch(upload[1].decode(), sign(KEY, b"bundle")).content == b"bundle"


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"X-HMAC: 1\r\nContent-Length: 10000000000\r\n\r\n", b"malformed_header"),
        (b"Content-Length: 10000000000\r\n\r\n", b"bundle_too_large"),
    ],
)
def test_early_answers_arrive_whole_while_neighbours_are_served(
    service: Service, head: bytes, code: bytes
) -> None:
    """20 of 20, each to a client that sends 4 MiB more before it looks."""
    stop = threading.Event()
    took = list[float]()

    def neighbour() -> None:
        while not stop.is_set():
            took.extend(latencies(service.url, count=2))

    thread = threading.Thread(target=neighbour)
    thread.start()
    try:
        for _ in range(20):
            with dial(service.url) as connection:
                connection.sendall(UPLOAD + head)
                assert select.select([connection], [], [], 2)[0], "it waits for the body"
                for _ in range(4):
                    connection.sendall(bytes(MIB))
                assert problem_code(read_answer(connection)) == code
    finally:
        stop.set()
        thread.join(20)
    print(f"neighbours: {in_words(took)}, longest {max(took) * 1e3:.1f} ms")
    assert max(took) < pace.LINGER


def test_neighbours_of_a_flood_of_tiny_chunks(service: Service) -> None:
    """One read holds 43,000 of them; nobody waits for as long as it takes to parse those."""
    flood = "1\r\nx\r\n" * 5000
    took = list[float]()
    with attacking(
        service.url, Attack(2, (UPLOAD + CHUNKED).decode(), byte=flood, every=0)
    ) as attackers:
        for _ in range(10):
            began = time.monotonic()
            assert service.http.get("/healthz").status_code == 200
            took.append(time.monotonic() - began)
        read = parsing(UPLOAD + CHUNKED, b"1\r\nx\r\n" * 43_000)
        [report] = attackers.stop()
    print(f"beside {report.sent * 5000} chunks: {in_words(took)}; a read: {read * 1e3:.1f} ms")
    assert report.sent
    assert statistics.median(took) < read / 4


def parsing(head: bytes, body: bytes) -> float:
    """Seconds that h11 takes over a body."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(head + body)
    began = time.monotonic()
    while server.next_event() is not h11.NEED_DATA:
        pass
    return time.monotonic() - began


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("count", [99, 100, 101, 5_000])
def test_a_bundle_in_tiny_chunks(service: Service, count: int, *, half_closed: bool) -> None:
    """All of it arrives, and what follows is the next request."""
    bundle = os.urandom(count)
    with dial(service.url) as connection:
        chunks = b"".join(chunk(bundle[at : at + 1]) for at in range(count))
        after = b"" if half_closed else LAST
        connection.sendall(UPLOAD + CHUNKED + chunks + b"0\r\n\r\n" + after)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        answers = parsed(read_all(connection))
    assert [status for status, _ in answers] == ([200] if half_closed else [200, 200])
    assert service.fetch(answers[0][1].decode(), sign(KEY, bundle)).content == bundle


def test_a_chunk_whose_head_comes_in_pieces(service: Service) -> None:
    """As any network may cut it; the application asked once and waits for the rest."""
    began = time.monotonic()
    with dial(service.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (
            UPLOAD + CHUNKED,
            b"0",
            b"6",
            b"\r",
            b"\nbund",
            b"le\r\n0\r\n",
            b"\r\n" + LAST,
        ):
            connection.sendall(piece)
            time.sleep(0.05)  # Each is to be a read of its own.
        [(status, bundle_id), _] = parsed(read_all(connection))
    assert status == 200
    assert service.fetch(bundle_id.decode(), sign(KEY, b"bundle")).content == b"bundle"
    assert time.monotonic() - began < 5


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
    assert time.monotonic() - began < pace.LINGER + 3


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
    monkeypatch.setattr(pace, "GRACE", 1.0)
    sent = 0
    with caplog.at_level("INFO", "service.journal"), socket.socket() as connection:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, 16 * 1024)
        connection.connect(("127.0.0.1", int(service.url.rsplit(":", 1)[1])))
        connection.settimeout(60)
        port = connection.getsockname()[1]
        with suppress(ConnectionError):
            while True:
                sent += connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        until(lambda: port not in server_peers(service.url))
    answers = [record.created for record in caplog.records if record.name == "service.journal"]
    waited = time.time() - answers[-2]  # The last one was cut.
    print(f"dropped after {sent >> 10} KiB, {len(answers)} answers, and {waited:.2f} s")
    assert sent < 16 * MIB
    assert waited < 10
