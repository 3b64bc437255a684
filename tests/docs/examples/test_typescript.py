"""The TypeScript example, in Node.js and in Chromium, against a real service."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from service.http.auth.authorizer import hash_token
from tests.docs.examples.stub_server import StubServer
from tests.docs.examples.typescript import (
    FOLDER,
    Chromium,
    Runtime,
    run_tsc,
)
from tests.support.clients.chromium import in_chromium
from tests.support.clients.signing import sign
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.proxy import (
    Action,
    Exchange,
    Fault,
    PauseRequest,
    Proxy,
    Reset,
    Respond,
    Truncate,
)
from tests.support.repository import ROOT
from tests.support.services.thread import Service, StartService
from tests.support.stores import Store

pytestmark = in_chromium
SIZE = 3_000_000
CONTENT = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]
KEY = LEAK_DETECTOR.add_key("the-signing-key-of-the-typescript-example")
TOKEN = LEAK_DETECTOR.add_key("the-upload-token-of-the-typescript-example")


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    """A proxy between the example and the service."""
    with Proxy(service.url) as proxy:
        yield proxy


def upload(runtime: Runtime, url: str, size: int = SIZE, **options: object) -> dict[str, Any]:
    """Upload an archive. Return what the example returned."""
    outcome = runtime.call("upload", server=url, size=size, options={"signingKey": KEY, **options})
    assert not outcome.error
    bundle: dict[str, Any] = outcome.value
    return bundle


def requests(proxy: Proxy, operation: str) -> list[Exchange]:
    """Return the requests of the example: GetObject or DeleteObject, or POST /upload."""
    return [
        request for request in proxy.requests if operation in (request.operation, request.method)
    ]


def bundle_for(url: str, content: bytes = CONTENT, key: str = KEY) -> dict[str, Any]:
    """Return what the example would return after an upload."""
    hmac = sign(key, content)["X-HMAC"]
    return {"url": url, "signingKey": key, "hmac": hmac, "size": len(content)}


def test_archive_is_uploaded_downloaded_and_deleted(
    runtime: Runtime, service: Service, proxy: Proxy
) -> None:
    before = datetime.now(UTC)
    uploaded = runtime.call("upload", server=f"{proxy.url}/", size=SIZE, options={"ttl": 600})
    bundle = uploaded.value
    [request] = requests(proxy, "POST")
    assert request.headers["content-length"] == str(SIZE)
    assert "transfer-encoding" not in request.headers
    assert request.headers["x-signing-key"] == bundle["signingKey"]
    assert re.fullmatch("[0-9a-f]{64}", bundle["signingKey"])
    assert bundle["hmac"] == sign(bundle["signingKey"], CONTENT)["X-HMAC"]
    lifetime = datetime.fromisoformat(bundle["expires"]) - before
    assert timedelta(seconds=598) < lifetime < timedelta(seconds=620)
    bundle_id = bundle["url"].removeprefix(f"{proxy.url}/files/")
    assert "receipt" in service.record(bundle_id)  # The service has checked the HMAC.

    downloaded = runtime.call("download", bundle=bundle)
    assert downloaded.value == sha256(CONTENT).hexdigest()
    assert len(downloaded.progress) > 1
    for progress in (uploaded.progress, downloaded.progress):
        assert progress == sorted(progress)
        assert progress[-1] == [SIZE, SIZE]
        assert {total for _, total in progress} == {SIZE}

    assert not runtime.call("delete", bundle=bundle).error
    gone = runtime.call("download", bundle=bundle)
    assert (gone.error["code"], gone.error["status"]) == ("not_found", 404)
    assert gone.error["message"] == f"not_found: {gone.error['detail']}"
    assert not runtime.call("delete", bundle=bundle).error
    assert len(requests(proxy, "GetObject")) == 2


def test_interrupted_download_is_resumed(runtime: Runtime, proxy: Proxy) -> None:
    """The example gives up after six attempts without progress, so it makes progress here."""
    bundle = upload(runtime, proxy.url)
    small_cuts = [Truncate(100_000, pause=0.2)] * 6
    cuts: list[Action] = [Truncate(1_000_000), Reset(1_200_000), *small_cuts]
    proxy.faults.extend(Fault("GetObject", cut) for cut in cuts)
    outcome = runtime.call("download", bundle=bundle, speed=50)
    assert outcome.value == sha256(CONTENT).hexdigest()
    attempts = requests(proxy, "GetObject")
    assert len(attempts) == 1 + len(cuts)
    ranges = [request.headers.get("range", "bytes=0-") for request in attempts]
    positions = [int(requested[len("bytes=") : -1]) for requested in ranges]
    # A busy browser drops bytes that it has received but not passed on when it notices that the
    # connection is closed, up to all bytes of an attempt. The example requests those again.
    assert positions == sorted(positions)
    assert {0} < set(positions) <= {0, *(received for received, _ in outcome.progress)}
    resumed = [request for request in attempts if "range" in request.headers]
    assert {request.status for request in resumed} == {206}
    assert len({request.headers["if-range"] for request in resumed}) == 1
    assert sum(request.sent for request in proxy.requests if request.method == "GET") < SIZE * 1.5
    assert outcome.progress == sorted(outcome.progress)


def test_wrong_proof_is_a_clear_error_and_not_retried(runtime: Runtime, proxy: Proxy) -> None:
    bundle = upload(runtime, proxy.url, size=1000)
    for wrong in ({"signingKey": "another signing key"}, {"hmac": "00" * 32}):
        for function in ("download", "delete"):
            proxy.requests.clear()
            outcome = runtime.call(function, bundle={**bundle, **wrong})
            assert (outcome.error["code"], outcome.error["status"]) == ("invalid_hmac", 401)
            assert "check that X-HMAC is the bundle's HMAC-SHA256" in outcome.error["detail"]
            assert len([r for r in proxy.requests if r.method != "OPTIONS"]) == 1
            assert outcome.retry_waits == []


def test_upload_token_is_in_the_url_or_an_option_and_is_not_passed_on(
    runtime: Runtime, start_service: StartService
) -> None:
    url = start_service(upload_tokens=f"app:{hash_token(TOKEN)}").url
    for bundle in (
        upload(runtime, url, size=10, token=TOKEN),
        upload(runtime, f"{url}/t/{TOKEN}/", size=10),
    ):
        assert bundle["url"].startswith(f"{url}/files/")
        assert TOKEN not in json.dumps(bundle)
        assert runtime.call("download", bundle=bundle).value == sha256(CONTENT[:10]).hexdigest()
    refused = runtime.call("upload", server=url, size=10, options={"signingKey": KEY})
    assert (refused.error["code"], refused.error["status"]) == ("unauthorized", 401)


def test_too_large_archive_is_a_clear_error(runtime: Runtime, start_service: StartService) -> None:
    url = start_service(max_bundle_size=1000).url
    for size in (1001, 20_000_000):
        outcome = runtime.call("upload", server=url, size=size, options={"signingKey": KEY})
        assert (outcome.error["code"], outcome.error["status"]) == ("bundle_too_large", 413)
        assert outcome.retry_waits == []


def test_unavailable_server_is_tried_again_after_retry_after(
    runtime: Runtime, start_service: StartService, store: Store
) -> None:
    with Proxy(store.endpoint_url) as proxy:
        url = start_service(endpoint_url=proxy.url).url
        options = {"signingKey": KEY}
        denied = Respond(403, "AccessDenied")
        proxy.faults.append(Fault("PutObject", denied, times=2))
        uploaded = runtime.call("upload", server=url, size=1000, options=options, speed=50)
        assert uploaded.retry_waits == [5, 5]
        proxy.faults.append(Fault("GetObjectTagging", denied))
        downloaded = runtime.call("download", bundle=uploaded.value, speed=50)
        assert downloaded.value == sha256(CONTENT[:1000]).hexdigest()
        assert downloaded.retry_waits == [5]
        proxy.faults.append(Fault("GetObjectTagging", denied, times=None))
        failed = runtime.call("delete", bundle=uploaded.value, speed=50)
    assert (failed.error["code"], failed.error["status"]) == ("storage_unavailable", 503)
    assert failed.retry_waits == [5] * 5


def test_long_retry_after_is_an_error_at_once(node: Runtime, service: Service) -> None:
    """The service answers 429 after five wrong proofs of a bundle that it had to read."""
    content = CONTENT[:1000]
    bundle = bundle_for("", content)
    bundle["url"] = f"{service.url}/files/{service.upload(content, bundle['hmac'])}"
    wrong = {**bundle, "signingKey": "another signing key"}
    codes = [node.call("download", bundle=wrong).error["code"] for _ in range(5)]
    assert codes == ["invalid_hmac"] * 5
    outcome = node.call("download", bundle=wrong)
    assert (outcome.error["code"], outcome.error["status"]) == ("too_many_attempts", 429)
    assert outcome.error["retryAfter"] > 60
    assert outcome.retry_waits == []


def test_attempts_are_bounded_with_growing_waits(
    node: Runtime, closed_port: str, stub: StubServer
) -> None:
    bundle = bundle_for(f"{closed_port}/files/x")
    for outcome in (
        node.call("upload", server=closed_port, size=10, options={"signingKey": KEY}, speed=500),
        node.call("download", bundle=bundle, speed=500),
        node.call("delete", bundle=bundle, speed=500),
        node.call("download", bundle={**bundle, "url": stub.url("hangs-up")}, speed=500),
        node.call("download", bundle={**bundle, "url": stub.url("silent")}, speed=500),
        node.call("download", bundle={**bundle, "url": stub.url("redirect")}, speed=500),
    ):
        assert outcome.error["code"] == "connection_lost"
        limits = [1, 2, 4, 8, 16]
        assert len(outcome.retry_waits) == len(limits)
        for wait, limit in zip(outcome.retry_waits, limits, strict=True):
            assert limit / 2 <= wait <= limit


def test_download_without_progress_is_bounded(node: Runtime, proxy: Proxy) -> None:
    bundle = upload(node, proxy.url)
    proxy.faults.append(Fault("GetObject", Truncate(1000), times=None))
    outcome = node.call("download", bundle=bundle, speed=500)
    assert outcome.error["code"] == "connection_lost"
    assert len(requests(proxy, "GetObject")) == 6


@pytest.mark.parametrize(
    ("response", "size", "expected"),
    [
        ("tampered", 19, ("hmac_mismatch", 0)),
        ("tampered", 20, ("size_mismatch", 200)),
        ("longer-chunks", 19, ("size_mismatch", 206)),
        ("html", 19, ("unexpected_response", 502)),
        ("null", 19, ("unexpected_response", 502)),
        ("400", 19, ("a_code", 400)),
    ],
)
def test_wrong_response_to_a_download_is_an_error(
    node: Runtime, stub: StubServer, response: str, size: int, expected: tuple[str, int]
) -> None:
    outcome = node.call("download", bundle=bundle_for(stub.url(response), CONTENT[:size]))
    assert (outcome.error["code"], outcome.error["status"]) == expected
    assert outcome.retry_waits == []


def test_download_whose_end_is_lost_needs_no_other_request(node: Runtime, stub: StubServer) -> None:
    content = CONTENT[:19]
    outcome = node.call("download", bundle=bundle_for(stub.url("all-without-an-end"), content))
    assert outcome.value == sha256(content).hexdigest()
    assert stub.request_heads.qsize() == 1


def test_answer_without_id_to_an_upload_is_an_error(node: Runtime, stub: StubServer) -> None:
    url = stub.url("no-id")
    outcome = node.call("upload", server=url, size=10, options={"signingKey": KEY})
    assert outcome.error["code"] == "unexpected_response"


def test_transfer_can_be_cancelled(runtime: Runtime, proxy: Proxy) -> None:
    """The proxy reads only a part of the upload, so its progress ends before its size."""
    preflights = 1 if isinstance(runtime, Chromium) else 0
    pause, size = PauseRequest(), 40_000_000
    proxy.faults.append(Fault("Unknown", pause, after=preflights))
    options = {"signingKey": KEY}
    uploaded = runtime.call(
        "upload", server=proxy.url, size=size, options=options, abortAtProgress=1
    )
    pause.resume.set()
    assert uploaded.error["name"] == "AbortError"
    assert 0 < uploaded.progress[-1][0] < size
    assert pause.ended.wait(10)

    bundle = upload(runtime, proxy.url)
    downloaded = runtime.call("download", bundle=bundle, abortAtProgress=1)
    assert downloaded.error["name"] == "AbortError"
    assert downloaded.retry_waits == []


def test_code_on_the_page_for_xmtp_is_strictly_typed(compiled: Path, tmp_path: Path) -> None:
    """The types of the client are those of version 7.1 of XMTP's browser SDK."""
    page = (ROOT / "examples" / "xmtp.md").read_text()
    [code] = re.findall(r"^```ts\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    declarations = """\
declare const client: {
    createArchive(key: Uint8Array, opts?: object): Promise<Uint8Array>;
    importArchive(data: Uint8Array, key: Uint8Array): Promise<void>;
};
"""
    path = FOLDER / "transfer-archive.js"
    code = code.replace('"./transfer-archive.js"', json.dumps(str(path)))
    (tmp_path / "page.ts").write_text(declarations + code)
    arguments = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"]
    arguments += ["--module", "es2022", "--moduleResolution", "bundler"]
    assert run_tsc(*arguments, tmp_path / "page.ts") == ""


def test_lock_file_pins_the_compiler_and_names_no_registry() -> None:
    text = (FOLDER / "package-lock.json").read_text()
    manifest = json.loads((FOLDER / "package.json").read_text())
    packages = json.loads(text)["packages"]
    assert "://" not in text
    assert packages.pop("")["devDependencies"] == manifest["devDependencies"]
    versions = {
        name.removeprefix("node_modules/"): pin["version"] for name, pin in packages.items()
    }
    assert versions == manifest["devDependencies"]
    assert all(pin["integrity"].startswith("sha512-") for pin in packages.values())
    assert json.loads((FOLDER / "tsconfig.json").read_text())["compilerOptions"]["strict"]
