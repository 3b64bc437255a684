"""Bytes of a body that pass the parser arrive as those that go through it do."""

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

from service.http.server.connection import SMALL_READ
from service.http.server.parser import RequestParser
from tests.support.clients.signing import random_bytes, sign
from tests.support.clients.sockets import dial, read_all, read_answer
from tests.support.services.thread import Serve, Service

KIB = 1024
LARGE = 300 * KIB
"""More than is read at a time, so that some of it has to pass."""

SIZES = (0, 1, SMALL_READ - 200, SMALL_READ, 64 * KIB - 1, 64 * KIB, 256 * KIB, LARGE)

UUID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
OWN = re.compile(rb"(?i)\r\n(?:date|sunset|x-request-id): [^\r]*|" + UUID)
"""What is another in every answer."""


@dataclass(frozen=True)
class Said:
    """What a client says on one connection: requests, each in pieces, and then perhaps no more.

    It waits for each answer before it goes on, or sends them all `ahead`.
    """

    requests: list[list[bytes]]
    ahead: bool
    half_closes: bool


def body(dice: Random, size: int) -> bytes:
    """With what looks like a request in it."""
    request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    at = dice.randint(0, size)
    return (dice.randbytes(at) + request + dice.randbytes(size))[:size]


def upload(dice: Random, size: int) -> bytes:
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\n"
    if dice.random() < 0.3:
        head += b"Expect: 100-continue\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % size + body(dice, size)


def chunked(dice: Random) -> bytes:
    chunks = (body(dice, dice.randint(1, 20 * KIB)) for _ in range(3))
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + encoded + b"0\r\n\r\n"


def sized(dice: Random) -> int:
    return dice.choice((dice.choice(SIZES), dice.randint(1, 2 * LARGE)))


def any_request(dice: Random) -> bytes:
    return dice.choice(
        (
            upload(dice, sized(dice)),
            upload(dice, sized(dice)),
            chunked(dice),
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        )
    )


LAST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"POST /upload HTTP/1.1\r\nHost: x\r\nX-HMAC: 1\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"POST /upload HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % LARGE,
    b"what is no request\r\n\r\n",
)
"""Each ends the connection, some of them before the end of their bodies."""


def said(dice: Random) -> Said:
    requests = [upload(dice, dice.randint(LARGE, 2 * LARGE))]
    requests += [any_request(dice) for _ in range(dice.randint(0, 4))]
    dice.shuffle(requests)
    half_closes = dice.random() < 0.3
    if half_closes:
        # Only an upload: who hangs up before another answer may have it still or not.
        last = upload(dice, sized(dice))
        last = last[: dice.choice((len(last), dice.randint(0, len(last))))]
    elif b"Content-Length" in (last := dice.choice(LAST)):
        last += body(dice, LARGE)
    requests.append(last)
    return Said([pieces(dice, it) for it in requests], dice.random() < 0.5, half_closes)


def pieces(dice: Random, request: bytes) -> list[bytes]:
    """Cut anywhere, and around the end of the head and of the body."""
    size, head = len(request), request.find(b"\r\n\r\n") + 4
    near = [at + dice.randint(-2, 2) for at in (head, head, size)]
    anywhere = [dice.randint(0, size) for _ in range(dice.randint(0, 5))]
    cuts = sorted({0, size, *(min(max(at, 0), size) for at in near + anywhere)})
    return [request[start:end] for start, end in pairwise(cuts)]


def hear(service: Service, said: Said) -> tuple[bytes, list[bytes]]:
    """All answers, but for what is another in each, and the bundles that they made."""
    heard = bytearray()
    with dial(service.url) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, request in enumerate(said.requests, start=1):
            for piece in request:
                connection.sendall(piece)
                time.sleep(0.002)  # So that the service sees it alone.
            if not said.ahead and number < len(said.requests):
                heard += read_answer(connection)
        if said.half_closes:
            connection.shutdown(socket.SHUT_WR)
        heard += read_all(connection)
    ids = re.findall(rb"\r\n\r\n(" + UUID + rb")", heard)
    return OWN.sub(b"", heard), [stored(service, bundle_id.decode()) for bundle_id in ids]


def stored(service: Service, bundle_id: str) -> bytes:
    where = {"Bucket": service.bucket, "Key": f"{service.prefix}{bundle_id}"}
    content: bytes = service.s3.get_object(**where)["Body"].read()
    return content


@pytest.mark.parametrize("seed", range(24))
def test_what_passes_the_parser_is_what_goes_through_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The same bytes in the same pieces, with the short cut and without: the same answers."""
    words = said(Random(seed))
    passed = list[bool]()
    short_cut = RequestParser.skip_body

    def watched(self: Any, size: int) -> bool:
        passed.append(short_cut(self, size))
        return passed[-1]

    monkeypatch.setattr(RequestParser, "skip_body", watched)
    heard = hear(service, words)
    assert any(passed)
    monkeypatch.setattr(RequestParser, "skip_body", lambda *_: False)
    assert hear(service, words) == heard
    sent = [b"".join(request) for request in words.requests]
    for bundle in heard[1]:
        assert any(bundle in request or b"chunked" in request for request in sent)
    assert heard[0].startswith(b"HTTP/1.1 ")


HEAD = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


def conversation(head: bytes) -> RequestParser:
    """A request's head and what comes with it, taken in."""
    begun = RequestParser()
    begun.receive_data(head)
    while begun.next_event() not in (h11.NEED_DATA, h11.PAUSED):
        pass
    return begun


def test_all_but_the_last_bytes_of_a_body_pass() -> None:
    begun = conversation(HEAD + b"01")
    assert not begun.skip_body(8)
    assert begun.skip_body(5)
    assert not begun.skip_body(3)
    assert begun.skip_body(2)
    begun.receive_data(b"9GET /")
    last = begun.next_event()
    assert isinstance(last, h11.Data)
    assert last.data == b"9"
    assert isinstance(begun.next_event(), h11.EndOfMessage)
    assert begun.trailing_data == (b"GET /", False)


@pytest.mark.parametrize(
    "head",
    [
        HEAD[:-2],
        HEAD + b"0123456789",
        HEAD + b"0123456789GET /",
        HEAD.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_nothing_passes_where_it_is_no_body_of_a_known_length(head: bytes) -> None:
    assert not conversation(head).skip_body(1)


def test_nothing_passes_before_what_has_come_is_taken_in() -> None:
    begun = conversation(HEAD)
    begun.receive_data(b"01")
    assert not begun.skip_body(1)


def test_nothing_passes_once_there_is_an_answer() -> None:
    begun = conversation(HEAD)
    begun.send(h11.Response(status_code=400, headers=[]))
    assert not begun.skip_body(1)


def test_two_servers_in_one_process_keep_their_bytes_apart(service: Service, serve: Serve) -> None:
    """Each server's thread reads while the other one takes out what it has read."""
    other = serve()
    small = [random_bytes(seed, 300_000) for seed in range(2)]

    def uploads(at: Service, bundle: bytes) -> set[int]:
        headers = sign("the key of two servers", bundle)
        answers = (at.http.post("/upload", content=bundle, headers=headers) for _ in range(40))
        return {answer.status_code for answer in answers}

    with ThreadPoolExecutor(2) as threads:
        assert set().union(*threads.map(uploads, (service, other), small)) == {200}
