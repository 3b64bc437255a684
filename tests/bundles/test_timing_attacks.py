"""The time until a 401 response reveals nothing about the stored HMAC, or a token's hash."""

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
from types import ModuleType
from uuid import UUID

import pytest

import service
from service.bundles import access, proof
from service.http.auth import authorizer
from tests.support.clients.sockets import connect_to
from tests.support.services.thread import StartService

BUNDLE_ID = UUID("6f1bd34b-7e51-4ffb-89a1-b14364af956c")
STORED_HMAC = random.Random(31).randbytes(32).hex()
BLOCK_SIZE = 100
"""Samples that are compared with each other. Drifts that are slower than a block cancel out."""

SAMPLES = 20_000

THRESHOLD = 5.0
"""A difference of more standard errors than this is significant.

By chance, this happens less than once in 10,000 runs.
"""


@dataclass(frozen=True)
class Comparison:
    """How much longer refusals take if 31 bytes of the HMAC are right than if none is.

    `blocks` has the difference in each block, in microseconds.
    """

    blocks: list[float]

    @property
    def difference(self) -> float:
        """The average over all blocks, in microseconds."""
        return statistics.fmean(self.blocks)

    @property
    def error(self) -> float:
        """The standard error of the difference, in microseconds."""
        return statistics.stdev(self.blocks) / math.sqrt(len(self.blocks))

    @property
    def is_significant(self) -> bool:
        return abs(self.difference) > THRESHOLD * self.error

    def __str__(self) -> str:
        detectable = (THRESHOLD + 1.645) * self.error
        return (
            f"{self.difference:+.2f} µs, standard error {self.error:.2f} µs in {len(self.blocks)} "
            f"blocks; a difference of {detectable:.1f} µs would be detected in 95 % of the runs"
        )


def tagging(tags: Mapping[str, str]) -> bytes:
    tag_set = "".join(
        f"<Tag><Key>{name}</Key><Value>{value}</Value></Tag>" for name, value in tags.items()
    )
    return f"<Tagging><TagSet>{tag_set}</TagSet></Tagging>".encode()


class FakeStore(BaseHTTPRequestHandler):
    """A store that has one bundle, and responds at once. The bundle's body is its tags."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    body = tagging({"expires-at": "9999999999", "hmac-sha256": STORED_HMAC})

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("ETag", '"etag"')
        self.send_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(start_service: StartService) -> Iterator[str]:
    """The URL of a service that uses the fake store."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeStore) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            yield start_service(endpoint_url=endpoint, bucket="fake-bucket").url
        finally:
            server.shutdown()


def wrong_hmac(shared: int, rng: random.Random) -> str:
    """Make an HMAC of which the first `shared` bytes are right and the next byte is wrong."""
    end = 2 * shared
    wrong = rng.choice([digit for digit in "0123456789abcdef" if digit != STORED_HMAC[end]])
    return STORED_HMAC[:end] + wrong + rng.randbytes(32).hex()[end + 1 :]


def compare(
    url: str, samples: int, rng: random.Random, request: Callable[[str], str]
) -> Comparison:
    """Send `samples` requests on one connection, with both kinds of HMAC in random order."""
    with connect_to(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2 * BLOCK_SIZE):
            time_refusal(connection, request(wrong_hmac(0, rng)))  # A warm-up, not counted.
        return Comparison(
            [measure_block(connection, rng, request) for _ in range(samples // BLOCK_SIZE)]
        )


def measure_block(
    connection: socket.socket, rng: random.Random, request: Callable[[str], str]
) -> float:
    shares = [0, 31] * (BLOCK_SIZE // 2)
    rng.shuffle(shares)
    times: dict[int, list[float]] = {0: [], 31: []}
    for shared in shares:
        times[shared].append(time_refusal(connection, request(wrong_hmac(shared, rng))))
    return fast_mean(times[31]) - fast_mean(times[0])


def fast_mean(times: list[float]) -> float:
    """Return the mean of the faster half. Slow requests were interrupted by something else."""
    return statistics.fmean(sorted(times)[: len(times) // 2])


def download(hmac: str) -> str:
    return (
        f"GET /files/{BUNDLE_ID} HTTP/1.1\r\nHost: x\r\nX-HMAC: {hmac}\r\n"
        "X-SIGNING-KEY: a key that signed something else\r\n\r\n"
    )


def upload(token: str) -> str:
    return f"POST /upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"


def time_refusal(connection: socket.socket, request: str) -> float:
    """Return the time until the first byte of the 401 response, in microseconds."""
    started = time.perf_counter_ns()
    connection.sendall(request.encode())
    connection.recv(1, socket.MSG_PEEK)
    duration = time.perf_counter_ns() - started
    with HTTPResponse(connection) as response:
        response.begin()
        assert response.status == 401
        response.read()
    return duration / 1000


def leaking_comparison(microseconds: float) -> Callable[[str, str], bool]:
    """Make a comparison that takes so many microseconds for each equal byte at the start."""

    def equal(left: str, right: str) -> bool:
        shared = next(
            (
                start
                for start in range(0, 64, 2)
                if left[start : start + 2] != right[start : start + 2]
            ),
            64,
        )
        deadline = time.perf_counter() + shared // 2 * microseconds / 1e6
        while time.perf_counter() < deadline:
            pass
        return left == right

    return equal


def check_timing(
    url: str, request: Callable[[str], str], module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that refusals reveal nothing, and that a leak of `module` would be found.

    A fifth of the samples is enough to detect a comparison that takes 20 µs per right byte.
    """
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    actual = compare(url, SAMPLES, rng, request)
    monkeypatch.setattr(module, "equal_digests", leaking_comparison(20))
    leaking = compare(url, SAMPLES // 5, rng, request)
    print(f"\nseed {seed}\nactual: {actual}\nleaking: {leaking}")
    assert not actual.is_significant
    assert leaking.is_significant


@pytest.mark.soak
def test_refusal_takes_as_long_for_a_nearly_right_hmac_as_for_a_wrong_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_timing(url, download, access, monkeypatch)


@pytest.mark.soak
def test_refusal_takes_as_long_for_a_token_with_a_similar_hash(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are their own hashes, because no two tokens with similar hashes are known."""
    monkeypatch.setattr(authorizer, "hash_token", str)
    url = start_service(upload_tokens=f"app:{STORED_HMAC}").url
    check_timing(url, upload, authorizer, monkeypatch)


@pytest.mark.parametrize("leak", [0, 25])
def test_difference_is_distinguished_from_noise(leak: float) -> None:
    rng = random.Random(7)
    delays = {0: 0.0, 31: leak}

    def sample() -> float:
        pairs = [
            {shared: rng.expovariate(1 / 300) + delays[shared] for shared in delays}
            for _ in range(BLOCK_SIZE)
        ]
        return fast_mean([times[31] for times in pairs]) - fast_mean([times[0] for times in pairs])

    assert Comparison([sample() for _ in range(100)]).is_significant is bool(leak)


SECRETS = {"claimed", "compute_receipt", "hexdigest", "hmac", "proof", "receipt", "sha256"}
"""Names of values that are compared to authorize a request."""


def unsafe_comparisons(source: str) -> list[str]:
    """Find comparisons of secrets that do not take constant time. Constants are not secrets."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(
            isinstance(operator, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for operator in node.ops
        )
        and not any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
        and SECRETS & {value_name(side) for side in (node.left, *node.comparators)}
    ]


def value_name(node: ast.expr) -> str:
    """Return the name of a value, or of the function that returns it."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=inner) | ast.Subscript(value=inner) | ast.Await(value=inner):
            return value_name(inner)
    return ""


def test_all_secrets_are_compared_in_constant_time() -> None:
    for path in Path(service.__file__).parent.rglob("*.py"):
        assert not unsafe_comparisons(path.read_text()), path.name
    assert "compare_digest" in proof.equal_digests.__code__.co_names


@pytest.mark.parametrize(
    ("source", "unsafe"),
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
def test_unsafe_comparison_is_detected(source: str, *, unsafe: bool) -> None:
    assert bool(unsafe_comparisons(source)) is unsafe
