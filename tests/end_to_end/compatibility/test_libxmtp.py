"""What libxmtp does where the network or S3 fails."""

import json
import random
import socket
import time
from http.client import HTTPResponse

from tests.end_to_end.compatibility import xmtp_formats
from tests.end_to_end.compatibility.client import chunked, place, seal
from tests.end_to_end.compatibility.libxmtp import Libxmtp, LibxmtpInABrowser
from tests.end_to_end.compatibility.xmtp_formats import History
from tests.support.clients.sockets import dial
from tests.support.polling import until
from tests.support.proxy import Drip, Fault, Proxy, Respond, Truncate
from tests.support.services.thread import Serve, Service

MIB = 1 << 20


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
        url, lambda body: xmtp_formats.open_archive(body, bundle.key), faults.clear
    )
    assert imported == short
    assert not faults


def test_libxmtp_behind_a_slow_way(trusting: Service, short: History) -> None:
    """As toxiproxy's slicer and latency make it: pieces end anywhere, in a chunk's size too."""
    rng, bundle = random.Random(10), seal(xmtp_formats.invent(seed=7, size=40_000))
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
