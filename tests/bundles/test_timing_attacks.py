"""How long a refusal takes tells nothing of the HMAC that is stored."""

import ast
import math
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import pytest

import service
from service.bundles import proof
from service.bundles import service as bundle_service
from tests.support.clients.sockets import dial
from tests.support.services.thread import Serve

BUNDLE_ID = UUID("6f1bd34b-7e51-4ffb-89a1-b14364af956c")
STORED = random.Random(31).randbytes(32).hex()
BLOCK = 100
"""Samples that are compared with each other: what drifts slower than this is no difference."""

SAMPLES = 20_000

LIMIT = 5.0
"""Standard errors from which on a difference is one: by chance, not once in ten thousand runs."""


@dataclass(frozen=True)
class Comparison:
    """The refusals of HMACs that share 31 bytes with the stored one, less those that share none."""

    blocks: list[float]

    @property
    def difference(self) -> float:
        """Microseconds, on average over the blocks."""
        return statistics.fmean(self.blocks)

    @property
    def error(self) -> float:
        """Its standard error."""
        return statistics.stdev(self.blocks) / math.sqrt(len(self.blocks))

    @property
    def tells(self) -> bool:
        return abs(self.difference) > LIMIT * self.error

    def __str__(self) -> str:
        found = (LIMIT + 1.645) * self.error
        return (
            f"{self.difference:+.2f} µs, standard error {self.error:.2f} µs in {len(self.blocks)} "
            f"blocks; of a difference of {found:.1f} µs, 95 % would be found"
        )


def tagging(tags: Mapping[str, str]) -> bytes:
    tag_set = "".join(f"<Tag><Key>{k}</Key><Value>{v}</Value></Tag>" for k, v in tags.items())
    return f"<Tagging><TagSet>{tag_set}</TagSet></Tagging>".encode()


class Tags(BaseHTTPRequestHandler):
    """An S3 that knows the tags of one bundle, and answers at once."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    body = tagging({"sha256": "0" * 64, "expires-at": "9999999999", "hmac-sha256": STORED})

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(serve: Serve) -> Iterator[str]:
    """A service in front of that store."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Tags) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            yield serve(endpoint_url=endpoint, bucket="of-tags").url
        finally:
            server.shutdown()


def wrong(shared: int, rng: random.Random) -> str:
    """An HMAC whose first `shared` bytes are the stored one's, and the next one is not."""
    at = 2 * shared
    other = rng.choice([digit for digit in "0123456789abcdef" if digit != STORED[at]])
    return STORED[:at] + other + rng.randbytes(32).hex()[at + 1 :]


def compare(url: str, samples: int, rng: random.Random) -> Comparison:
    """Ask so often on one connection, with either kind of HMAC in random order."""
    with dial(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2 * BLOCK):
            refusal(connection, wrong(0, rng))  # what is loaded at first is not counted
        return Comparison([block(connection, rng) for _ in range(samples // BLOCK)])


def block(connection: socket.socket, rng: random.Random) -> float:
    shares = [0, 31] * (BLOCK // 2)
    rng.shuffle(shares)
    times: dict[int, list[float]] = {0: [], 31: []}
    for shared in shares:
        times[shared].append(refusal(connection, wrong(shared, rng)))
    return fast_ones(times[31]) - fast_ones(times[0])


def fast_ones(times: list[float]) -> float:
    """The mean of the faster half: what is slow was interrupted, and tells of something else."""
    return statistics.fmean(sorted(times)[: len(times) // 2])


def refusal(connection: socket.socket, hmac: str) -> float:
    """The microseconds to the first byte of the answer."""
    request = (
        f"GET /files/{BUNDLE_ID} HTTP/1.1\r\nHost: x\r\nX-HMAC: {hmac}\r\n"
        "X-SIGNING-KEY: a key that signed something else\r\n\r\n"
    ).encode()
    began = time.perf_counter_ns()
    connection.sendall(request)
    connection.recv(1, socket.MSG_PEEK)
    took = time.perf_counter_ns() - began
    with HTTPResponse(connection) as answer:
        answer.begin()
        assert answer.status == 401
        answer.read()
    return took / 1000


def leaky(microseconds: float) -> Callable[[str, str], bool]:
    """A comparison that ends at the first byte that differs, and takes so long for each before."""

    def same(left: str, right: str) -> bool:
        at = next((at for at in range(0, 64, 2) if left[at : at + 2] != right[at : at + 2]), 64)
        end = time.perf_counter() + at // 2 * microseconds / 1e6
        while time.perf_counter() < end:
            pass
        return left == right

    return same


@pytest.mark.soak
def test_a_refusal_takes_as_long_however_much_of_the_hmac_is_right(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And if it took 20 µs longer for every byte that is right, a fifth of the samples would do."""
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    honest = compare(url, SAMPLES, rng)
    monkeypatch.setattr(bundle_service, "equal_digests", leaky(20))
    telling = compare(url, SAMPLES // 5, rng)
    print(f"\nseed {seed}\nas it is: {honest}\nleaking: {telling}")
    assert not honest.tells
    assert telling.tells


@pytest.mark.parametrize("leak", [0, 25])
def test_a_difference_is_told_from_noise(leak: float) -> None:
    rng = random.Random(7)
    shares = {0: 0.0, 31: leak}

    def sample() -> float:
        noise = [{at: rng.expovariate(1 / 300) + shares[at] for at in shares} for _ in range(BLOCK)]
        return fast_ones([it[31] for it in noise]) - fast_ones([it[0] for it in noise])

    assert Comparison([sample() for _ in range(100)]).tells is bool(leak)


SECRETS = {"claimed", "compute_receipt", "hexdigest", "hmac", "proof", "receipt", "sha256"}
"""Names of what is compared to let someone in."""


def careless(source: str) -> list[str]:
    """Comparisons of such values that end where they differ; constants are no secrets."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops)
        and not any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
        and SECRETS & {name(side) for side in (node.left, *node.comparators)}
    ]


def name(node: ast.expr) -> str:
    """What a value, or the function that it comes from, is called."""
    match node:
        case ast.Name(id=said) | ast.Attribute(attr=said):
            return said
        case ast.Call(func=inner) | ast.Subscript(value=inner) | ast.Await(value=inner):
            return name(inner)
    return ""


def test_every_comparison_is_in_constant_time() -> None:
    for path in Path(service.__file__).parent.rglob("*.py"):
        assert not careless(path.read_text()), path.name
    assert "compare_digest" in proof.equal_digests.__code__.co_names


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("if record.hmac == proof.hmac: pass", True),
        ("mac.hexdigest() != claimed", True),
        ("proof.hmac in hmacs", True),
        ("compute_receipt(proof, bundle_id) == tags['receipt']", True),
        ("hmac == b''", False),
        ("hmac is None", False),
        ("equal_digests(record.hmac, proof.hmac)", False),
        ("size == other.size", False),
    ],
)
def test_a_careless_comparison_is_found(source: str, *, found: bool) -> None:
    assert bool(careless(source)) is found
