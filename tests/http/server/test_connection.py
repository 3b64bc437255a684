"""Body bytes that skip the parser have the same effect as bytes that are parsed."""

import math
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import h11
import pytest

from service.bundles.memory import MAX_CHUNK
from service.http import routes
from service.http.server import connection
from service.http.server.parser import CHUNKED_READ, SMALL_READ, RequestParser
from service.http.slow_clients import ClientRate
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import (
    begin_upload,
    connect_to,
    read_response,
    read_until_closed,
)
from tests.support.polling import wait_until
from tests.support.services.thread import Service, StartService

KIB = 1024
LARGE = 300 * KIB
"""Bytes. More than the server reads with a head, so some of them must skip the parser."""

SIZES = (0, 1, SMALL_READ - 200, SMALL_READ, 64 * KIB - 1, 64 * KIB, 256 * KIB, LARGE)

UUID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
UNIQUE = re.compile(rb"(?i)\r\n(?:date|sunset|x-request-id): [^\r]*|" + UUID)
"""The parts of a response that differ each time."""


@dataclass(frozen=True)
class Conversation:
    """The requests that a client sends on one connection, each in pieces.

    A client that is `pipelined` does not wait for a response before it sends the next request. A
    client that `half_closes` closes its sending side after its last request.
    """

    requests: list[list[bytes]]
    pipelined: bool
    half_closes: bool


def body(random: Random, size: int) -> bytes:
    """Return random bytes that contain the text of a request."""
    request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    position = random.randint(0, size)
    return (random.randbytes(position) + request + random.randbytes(size))[:size]


def upload_request(random: Random, size: int) -> bytes:
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\n"
    if random.random() < 0.3:
        head += b"Expect: 100-continue\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % size + body(random, size)


def chunked_upload_request(random: Random) -> bytes:
    chunks = (body(random, random.randint(1, 20 * KIB)) for _ in range(3))
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + encoded + b"0\r\n\r\n"


def any_size(random: Random) -> int:
    return random.choice((random.choice(SIZES), random.randint(1, 2 * LARGE)))


def any_request(random: Random) -> bytes:
    return random.choice(
        (
            upload_request(random, any_size(random)),
            upload_request(random, any_size(random)),
            chunked_upload_request(random),
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        )
    )


LAST_REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"POST /upload HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"not a request\r\n\r\n",
)
"""The server closes the connection after each of these, after some before their body ends."""


def any_conversation(random: Random) -> Conversation:
    requests = [upload_request(random, random.randint(LARGE, 2 * LARGE))]
    requests += [any_request(random) for _ in range(random.randint(0, 4))]
    random.shuffle(requests)
    half_closes = random.random() < 0.3
    if half_closes:
        # Only an upload: whether another response still arrives would depend on timing.
        last = upload_request(random, any_size(random))
        last = last[: random.choice((len(last), random.randint(0, len(last))))]
    elif b"Content-Length" in (last := random.choice(LAST_REQUESTS)):
        last += body(random, LARGE)
    requests.append(last)
    return Conversation(
        [pieces(random, request) for request in requests], random.random() < 0.5, half_closes
    )


def pieces(random: Random, request: bytes) -> list[bytes]:
    """Cut a request anywhere, and near the end of its head and of its body."""
    size, head_size = len(request), request.find(b"\r\n\r\n") + 4
    near_ends = [end + random.randint(-2, 2) for end in (head_size, head_size, size)]
    anywhere = [random.randint(0, size) for _ in range(random.randint(0, 5))]
    cuts = sorted({0, size, *(min(max(cut, 0), size) for cut in near_ends + anywhere)})
    return [request[start:end] for start, end in pairwise(cuts)]


def run(service: Service, conversation: Conversation) -> tuple[bytes, list[bytes]]:
    """Return all responses, without their unique parts, and the bundles that were stored."""
    responses = bytearray()
    with connect_to(service.url) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, request in enumerate(conversation.requests, start=1):
            for piece in request:
                connection.sendall(piece)
                time.sleep(0.002)  # So that the service reads each piece by itself.
            if not conversation.pipelined and number < len(conversation.requests):
                responses += read_response(connection)
        if conversation.half_closes:
            connection.shutdown(socket.SHUT_WR)
        responses += read_until_closed(connection)
    ids = re.findall(rb"\r\n\r\n(" + UUID + rb")", responses)
    return UNIQUE.sub(b"", responses), [
        stored_bundle(service, bundle_id.decode()) for bundle_id in ids
    ]


def stored_bundle(service: Service, bundle_id: str) -> bytes:
    key = f"{service.prefix}{bundle_id}"
    bundle: bytes = service.s3.get_object(Bucket=service.bucket, Key=key)["Body"].read()
    return bundle


@pytest.mark.parametrize("seed", range(24))
def test_responses_are_the_same_with_and_without_skipping_the_parser(
    service: Service, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The client sends the same bytes in the same pieces both times."""
    conversation = any_conversation(Random(seed))
    skipped = list[bool]()
    skip_body = RequestParser.skip_body

    def recording_skip_body(self: Any, size: int) -> bool:
        skipped.append(skip_body(self, size))
        return skipped[-1]

    monkeypatch.setattr(RequestParser, "skip_body", recording_skip_body)
    responses, bundles = run(service, conversation)
    assert any(skipped)
    monkeypatch.setattr(RequestParser, "skip_body", lambda *_: False)
    assert run(service, conversation) == (responses, bundles)
    requests = [b"".join(pieces) for pieces in conversation.requests]
    for bundle in bundles:
        assert any(bundle in request or b"chunked" in request for request in requests)
    assert responses.startswith(b"HTTP/1.1 ")


HEAD = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


def parser_after(data: bytes) -> RequestParser:
    """Return a parser that has received and parsed this data."""
    parser = RequestParser()
    parser.receive_data(data)
    while parser.next_event() not in (h11.NEED_DATA, h11.PAUSED):
        pass
    return parser


def test_body_skips_the_parser_but_what_follows_does_not() -> None:
    parser = parser_after(HEAD + b"01")
    assert not parser.skip_body(9)
    assert parser.skip_body(5)
    assert not parser.skip_body(4)
    assert parser.next_event() is h11.NEED_DATA
    assert parser.skip_body(3)
    parser.receive_data(b"GET /")
    assert isinstance(parser.next_event(), h11.EndOfMessage)
    assert parser.trailing_data == (b"GET /", False)


def test_reads_end_with_a_body_of_known_length() -> None:
    """Otherwise a client could send megabytes of requests ahead, while no window covers them."""
    chunk_size = 1 << 20
    parser = parser_after(HEAD.replace(b"10", b"2000000"))
    assert parser.read_size(chunk_size) == chunk_size
    assert parser.skip_body(1_999_000)
    assert parser.read_size(chunk_size) == 1000
    assert parser.skip_body(1000)
    assert parser.next_event() is not h11.NEED_DATA
    assert parser.read_size(chunk_size) == SMALL_READ
    chunked = parser_after(HEAD.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"))
    assert chunked.read_size(chunk_size) == CHUNKED_READ


@pytest.mark.parametrize(
    "data",
    [
        HEAD[:-2],
        HEAD + b"0123456789",
        HEAD + b"0123456789GET /",
        HEAD.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_parser_is_not_skipped_outside_a_body_of_known_length(data: bytes) -> None:
    assert not parser_after(data).skip_body(1)


def test_parser_is_not_skipped_before_the_received_data_is_parsed() -> None:
    parser = parser_after(HEAD)
    parser.receive_data(b"01")
    assert not parser.skip_body(1)


def test_parser_is_not_skipped_once_the_response_has_started() -> None:
    parser = parser_after(HEAD)
    parser.send(h11.Response(status_code=400, headers=[]))
    assert not parser.skip_body(1)


def test_small_packets_of_a_body_are_passed_on_together(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a quarter of a chunk, at the end of the body, or when no more arrive for a while."""
    service = start_service(require_hmac=False)
    received = list[int]()

    class RecordedRate(ClientRate):
        def record(self, seconds: float, transferred: int, limit: float = math.inf) -> None:
            received.append(transferred)
            super().record(seconds, transferred, limit)

    monkeypatch.setattr(connection, "JOIN_DELAY", 0.3)
    monkeypatch.setattr(routes, "ClientRate", RecordedRate)
    bundle = random_bytes(7, MAX_CHUNK)
    with begin_upload(service.url, b"", len(bundle)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        packets = [bundle[start : start + 8 * KIB] for start in range(0, len(bundle), 8 * KIB)]
        for packet in packets[:-2]:
            client.sendall(packet)
            time.sleep(0.001)
        wait_until(lambda: sum(received) == len(bundle) - 16 * KIB)
        started = time.monotonic()
        client.sendall(b"".join(packets[-2:]))
        bundle_id = read_response(client)[-36:].decode()
        assert time.monotonic() - started < 0.3
    assert len(received) <= 8
    assert service.fetch(bundle_id).content == bundle


def test_two_servers_in_one_process_do_not_share_read_buffers(
    service: Service, start_service: StartService
) -> None:
    """Each server's thread reads while the other one processes what it has read."""
    other_service = start_service()
    bundles = [random_bytes(seed, 300_000) for seed in range(2)]

    def upload(target: Service, bundle: bytes) -> set[int]:
        """Return the statuses of 40 uploads whose HMAC the service checks."""
        headers = sign("the key of two servers", bundle)
        responses = (
            target.http.post("/upload", content=bundle, headers=headers) for _ in range(40)
        )
        return {response.status_code for response in responses}

    with ThreadPoolExecutor(2) as threads:
        assert set().union(*threads.map(upload, (service, other_service), bundles)) == {200}
