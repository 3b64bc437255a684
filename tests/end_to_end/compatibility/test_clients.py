"""Clients of other projects: their requests are replayed byte for byte, or the client itself runs.

Each client class is named after the client whose requests it sends. The order and the case of the
headers and the framing are as captured from the network. The clients accept no redirect and no
content coding, and judge a status as the original does. They send histories that are encrypted and
decrypted as libxmtp does.
"""

import base64
import hmac
import re
from collections.abc import Iterator
from contextlib import suppress
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from service.http.auth.authorizer import hash_token
from tests.end_to_end.compatibility import xmtp_formats
from tests.end_to_end.compatibility.client import (
    SIGNING_KEY,
    Client,
    RequestFailed,
    encrypt_history,
    read_body,
    send_request,
)
from tests.end_to_end.compatibility.clients import CLIENTS, CURL, encode_for
from tests.end_to_end.compatibility.libxmtp import Libxmtp
from tests.end_to_end.compatibility.other_clients import JdkHttpClient
from tests.end_to_end.compatibility.reference_clients import curl, needs_curl
from tests.end_to_end.compatibility.xmtp_formats import History, InvalidBundle
from tests.support.clients.signing import random_bytes
from tests.support.clients.sockets import connect_to
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Proxy, Truncate
from tests.support.services.thread import Service, running_service
from tests.support.stores import Store

MIB = 1 << 20


@pytest.mark.parametrize("client_class", [*CLIENTS, CURL])
def test_downloaded_history_equals_the_uploaded_one(
    open_service: Service, service: Service, short_history: History, client_class: type[Client]
) -> None:
    client = client_class()
    bundle, batches = encode_for(client, short_history)
    url = client.upload(
        (service if client.sends_proof else open_service).url + client.trailing_slash, batches
    )
    assert re.fullmatch(r".*/files/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", url)
    downloaded = client.download(url)
    assert downloaded == b"".join(batches)
    encrypted = base64.b64decode(downloaded) if client.bundle_format == "text" else downloaded
    assert bundle.decrypt(encrypted) == bundle.history
    if not client.sends_proof:
        assert Libxmtp().download(url) == downloaded
        with pytest.raises(RequestFailed, match="404"):
            Libxmtp().download(url[:-1] + "01"[url.endswith("0")])


TOKEN = LEAK_DETECTOR.add_key("an-upload-token-in-a-URL")


@pytest.fixture(scope="module")
def token_service(store: Store, s3: Any) -> Iterator[Service]:
    tokens = f"phones:{hash_token(TOKEN)}"
    with running_service(store, s3, upload_tokens=tokens, require_hmac=False) as service:
        yield service


@pytest.mark.parametrize("client_class", [*CLIENTS, CURL])
def test_every_client_can_have_an_upload_token_in_its_url(
    token_service: Service, short_history: History, client_class: type[Client]
) -> None:
    client = client_class()
    _, batches = encode_for(client, short_history)
    url = client.upload(f"{token_service.url}/t/{TOKEN}{client.trailing_slash}", batches)
    assert client.download(url) == b"".join(batches)
    before = len(token_service.objects())
    with suppress(RequestFailed):  # Some clients take any response for an id.
        client.upload(f"{token_service.url}/t/wrong{client.trailing_slash}", batches)
    assert len(token_service.objects()) == before


@pytest.mark.parametrize("client_class", [Libxmtp, CURL])
def test_long_history_equals_the_uploaded_one(
    open_service: Service, service: Service, client_class: type[Client]
) -> None:
    """Two parts in S3. libxmtp sends thousands of chunks, curl a form after a 100 response."""
    client = client_class()
    bundle = encrypt_history(xmtp_formats.make_history(seed=6, size=9 * MIB))
    url = client.upload((service if client.sends_proof else open_service).url, bundle.batches)
    assert bundle.decrypt(client.download(url)) == bundle.history


@pytest.mark.parametrize("client_class", CLIENTS)
def test_every_client_detects_an_incomplete_download(
    open_service: Service, faults: list[Fault], short_history: History, client_class: type[Client]
) -> None:
    """S3 sends only 1000 bytes per request, so the bundle stays incomplete despite all resumes.

    For curl, see `test_curl_resumes_an_interrupted_download`.
    """
    client = client_class()
    _, batches = encode_for(client, short_history)
    url = client.upload(open_service.url + client.trailing_slash, batches)
    assert client.download(url) == b"".join(batches)
    if client.sends_proof:  # Without the receipt, the bundle is read before the response starts.
        wait_until(lambda: "receipt" in open_service.record(url.rpartition("/")[2]))
    faults.append(Fault("GetObject", Truncate(1000), times=None))
    with pytest.raises((IncompleteRead, ConnectionError)):
        client.download(url)


@needs_curl
@pytest.mark.parametrize("with_proof", [False, True])
def test_curl_resumes_an_interrupted_download(
    open_service: Service, tmp_path: Path, *, with_proof: bool
) -> None:
    bundle = random_bytes(8, 9 * MIB)
    proof = {
        "X-HMAC": hmac.new(SIGNING_KEY.encode(), bundle, "sha256").hexdigest(),
        "X-SIGNING-KEY": SIGNING_KEY,
    }
    headers = [
        argument for name in proof for argument in ("-H", f"{name}: {proof[name]}") if with_proof
    ]
    bundle_id = open_service.upload(bundle, proof["X-HMAC"] if with_proof else None)
    output = tmp_path / "bundle"
    resume: list[str | Path] = [
        *headers,
        "--continue-at",
        "-",
        "--output",
        output,
        "--write-out",
        "%{http_code}",
    ]
    with Proxy(open_service.url) as proxy:
        proxy.faults.append(Fault(None, Truncate(len(bundle) * 4 // 10)))
        with pytest.raises(ConnectionError) as interruption:
            curl(f"{proxy.url}/files/{bundle_id}", *resume)
        assert interruption.value.args[0] == 18  # CURLE_PARTIAL_FILE
        assert output.stat().st_size == len(bundle) * 4 // 10
        assert curl(f"{proxy.url}/files/{bundle_id}", *resume) == b"206"
        assert proxy.requests[-1].sent == len(bundle) - len(bundle) * 4 // 10
    assert output.read_bytes() == bundle


def test_java_upload_body_is_not_read_as_a_request(open_service: Service) -> None:
    """The service ignores the offer of HTTP/2 and reads the body as a body, not as a request."""
    embedded = b"\r\n\r\nDELETE /upload HTTP/1.1\r\nHost: x\r\n\r\n"
    bundle = embedded + random_bytes(9, 200_000) + embedded
    client = JdkHttpClient()
    with connect_to(open_service.url) as connection:
        for _ in range(3):
            url = client.post(connection, open_service.url, bundle)
            assert b"".join(client.get(connection, url)) == bundle
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize("coding", ["gzip", "gzip, deflate, br, zstd", "*", "identity;q=0, gzip"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_no_response_is_a_redirect_or_compressed(
    open_service: Service, slash: str, coding: str
) -> None:
    """`send_request` checks this for each response. The bundle of zeros would compress well."""

    def request(method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        head = [f"{method} {slash}{path} HTTP/1.1", "Host: x", f"Accept-Encoding: {coding}"]
        head.append(f"Content-Length: {len(body)}")
        with (
            connect_to(open_service.url) as connection,
            send_request(connection, head, [body]) as response,
        ):
            return response.status, b"".join(read_body(response))

    bundle = bytes(100_000)
    bundle_id = request("POST", "/upload", bundle)[1].decode()
    for path in (f"/files/{bundle_id}", f"/files/{bundle_id}/", f"/files//{bundle_id.upper()}"):
        assert request("GET", path) == (200, bundle)
    for path in ("/healthz", "/files/", "/upload/", "/upload/x"):
        assert request("GET", path)[0] in (200, 404, 405)


def test_decryption_refuses_incomplete_and_damaged_bundles(short_history: History) -> None:
    """The other tests rely on decryption, so it must refuse every truncated or damaged bundle."""
    assert len(short_history.groups) == 3
    sizes = [len(message.decrypted_message_bytes) for message in short_history.messages]
    assert sum(sizes) >= 300_000
    bundle, jsonl_bundle = encrypt_history(short_history), encrypt_history(short_history, "jsonl")
    encrypted, [encrypted_jsonl] = b"".join(bundle.batches), jsonl_bundle.batches
    assert bundle.decrypt(encrypted) == short_history
    assert xmtp_formats.decrypt_archive(Libxmtp.pieces(bundle.batches), bundle.key) == short_history
    assert jsonl_bundle.decrypt(encrypted_jsonl) == jsonl_bundle.history
    assert max(map(len, Libxmtp.pieces(bundle.batches))) == 4096
    for size in [*range(20), *range(1000, len(encrypted), 9973), len(encrypted) - 1]:
        with pytest.raises(InvalidBundle):
            bundle.decrypt(encrypted[:size])
        with pytest.raises(InvalidBundle):
            jsonl_bundle.decrypt(encrypted_jsonl[:size])
    flipped = bytes([*encrypted[:5000], encrypted[5000] ^ 1, *encrypted[5001:]])
    with pytest.raises(InvalidBundle):
        bundle.decrypt(flipped)
    with pytest.raises(InvalidBundle):
        xmtp_formats.decrypt_archive([encrypted], bytes(32))
