"""Clients that nobody here wrote: replayed byte for byte, or run where they are at hand.

Each class below is named for the client whose requests it makes; their order, their case and their
framing are those seen on the wire. They stand no redirect and no content coding, and look at a
status as their client does. The histories that they carry are sealed and opened as libxmtp does it.
"""

import base64
import hmac
import re
from http.client import IncompleteRead
from pathlib import Path

import pytest

from tests.end_to_end.compatibility import xmtp_formats
from tests.end_to_end.compatibility.client import (
    SIGNING_KEY,
    Client,
    Refused,
    exchange,
    seal,
    stream,
)
from tests.end_to_end.compatibility.clients import CLIENTS, CURL, sent_by
from tests.end_to_end.compatibility.libxmtp import Libxmtp
from tests.end_to_end.compatibility.other_clients import JdkHttpClient
from tests.end_to_end.compatibility.reference_clients import curl, needs_curl
from tests.end_to_end.compatibility.xmtp_formats import BrokenBundle, History
from tests.support.clients.signing import random_bytes
from tests.support.clients.sockets import dial
from tests.support.proxy import Fault, Proxy, Truncate
from tests.support.services.thread import Service

MIB = 1 << 20


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
    bundle, client = seal(xmtp_formats.invent(seed=6, size=9 * MIB)), kind()
    url = client.upload((service if client.signs else trusting).url, bundle.batches)
    assert bundle.opened(client.download(url)) == bundle.history


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
    assert xmtp_formats.open_archive(Libxmtp.pieces(bundle.batches), bundle.key) == short
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
        xmtp_formats.open_archive([sealed], bytes(32))
