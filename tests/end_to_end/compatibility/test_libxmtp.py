"""libxmtp's requests while the network or S3 is slow or fails."""

import json
import random
import socket
import time
from http.client import HTTPResponse

from tests.end_to_end.compatibility import xmtp_formats
from tests.end_to_end.compatibility.client import chunked, encrypt_history, host_and_path
from tests.end_to_end.compatibility.libxmtp import Libxmtp, LibxmtpInBrowser
from tests.end_to_end.compatibility.xmtp_formats import History
from tests.support.clients.sockets import connect_to
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Proxy, Respond, Throttle, Truncate
from tests.support.services.thread import Service, StartService

MIB = 1 << 20


def test_client_can_send_all_requests_on_one_connection(
    open_service: Service, short_history: History
) -> None:
    """Connection pools and proxies reuse connections. libxmtp itself opens one for each request."""
    bundle, client = encrypt_history(short_history), Libxmtp()
    with connect_to(open_service.url) as connection:
        for _ in range(3):
            url = client.post(connection, open_service.url, bundle.batches)
            assert b"".join(client.get(connection, url)) == b"".join(bundle.batches)


def test_libxmtp_retries_an_upload_until_s3_recovers(
    open_service: Service, faults: list[Fault], short_history: History
) -> None:
    bundle = encrypt_history(short_history)
    before = len(open_service.objects())
    faults.append(Fault("PutObject", Respond(403, "AccessDenied"), times=None))
    failures: list[Fault] = []

    def pause() -> None:
        failures.append(faults.pop())

    url = Libxmtp().upload_with_retries(open_service.url, bundle.batches, pause)
    assert len(failures) == 1
    assert bundle.decrypt(Libxmtp().download(url)) == short_history
    wait_until(lambda: len(open_service.objects()) == before + 1)


def test_libxmtp_retries_an_interrupted_download(
    open_service: Service, faults: list[Fault], short_history: History
) -> None:
    bundle = encrypt_history(short_history)
    url = Libxmtp().upload(open_service.url, bundle.batches)
    faults.append(Fault("GetObject", Truncate(1000), times=None))
    imported = Libxmtp().import_with_retries(
        url, lambda body: xmtp_formats.decrypt_archive(body, bundle.key), faults.clear
    )
    assert imported == short_history
    assert not faults


def test_libxmtp_works_over_a_slow_network(open_service: Service, short_history: History) -> None:
    """As with toxiproxy's slicer and latency, a piece can end anywhere, even in a chunk's size."""
    rng, bundle = random.Random(10), encrypt_history(xmtp_formats.make_history(seed=7, size=40_000))
    client = Libxmtp()
    host, path = host_and_path(f"{open_service.url}/upload")
    head = [*client.head(f"POST {path} HTTP/1.1", host), "transfer-encoding: chunked", "", ""]
    request = "\r\n".join(head).encode() + b"".join(chunked(client.pieces(bundle.batches)))
    with connect_to(open_service.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request:
            size = rng.choice((1, 2, 3, 500, 1500))
            connection.sendall(request[:size])
            request = request[size:]
            time.sleep(0.002)
        with HTTPResponse(connection) as response:
            response.begin()
            bundle_id = response.read().decode()
    with Proxy(open_service.url) as slow_proxy:
        slow_proxy.faults.append(Fault(None, Throttle(200_000)))
        downloaded = client.download(f"{slow_proxy.url}/files/{bundle_id}")
        assert bundle.decrypt(downloaded) == bundle.history


def test_web_page_can_read_every_error(
    open_service: Service, faults: list[Fault], start_service: StartService, short_history: History
) -> None:
    """The page has another origin. `fetch` checks that CORS allows it to read each response."""
    page = LibxmtpInBrowser()

    def problem(response: tuple[int, bytes]) -> tuple[int, str]:
        status, body = response
        assert json.loads(body)["status"] == status
        return status, json.loads(body)["code"]

    url = page.upload(open_service.url, encrypt_history(short_history).batches)
    protected_id = open_service.upload(b"bundle", "0" * 64)
    protected = f"{open_service.url}/files/{protected_id}"
    missing = url[:-1] + "01"[url.endswith("0")]
    assert problem(page.fetch("GET", missing)) == (404, "not_found")
    assert problem(page.fetch("GET", protected)) == (400, "missing_header")
    assert problem(page.fetch("POST", f"{open_service.url}/upload", b"")) == (400, "empty_bundle")
    faults.append(Fault(None, Respond(403, "AccessDenied"), times=None))
    unavailable = (503, "storage_unavailable")
    assert problem(page.fetch("GET", url)) == unavailable
    assert problem(page.fetch("POST", f"{open_service.url}/upload", b"bundle")) == unavailable
    small_limit_url = start_service(require_hmac=False, max_bundle_size="1MiB").url
    too_large = page.fetch("POST", f"{small_limit_url}/upload", bytes(2 * MIB))
    assert problem(too_large) == (413, "bundle_too_large")
