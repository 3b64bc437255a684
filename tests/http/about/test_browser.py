"""The page at / and the CORS headers, in Chromium."""

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.remote_connection import RemoteConnection

from tests.http.about.page import AS_A_BROWSER, conversation
from tests.support.clients.signing import sign
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.services.thread import Serve, Service
from tests.support.stores import Store

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NOT_INSTALLED = "Chromium is not installed: apt-get install chromium chromium-driver"
KEY = "a signing key"


in_chromium = pytest.mark.xdist_group("chromium")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One Chromium for all tests; it keeps to itself and to this machine."""
    if CHROMIUM is None or DRIVER is None:
        if os.environ.get("CI") == "true":
            pytest.fail(NOT_INSTALLED)
        pytest.skip(NOT_INSTALLED)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "no-proxy-server",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Driver(DRIVER)) as driver:
        assert isinstance(driver.command_executor, RemoteConnection)
        driver.command_executor.client_config.timeout = 60
        driver.set_page_load_timeout(20)
        driver.set_script_timeout(20)
        yield driver


def console(driver: webdriver.Chrome) -> list[Any]:
    """What the console has shown since the last call: errors, and violations of the policy."""
    shown: list[Any] = driver.execute("getLog", {"type": "browser"})["value"]
    return shown


def luminance(colour: str) -> float:
    """WCAG's relative luminance of a CSS rgb()."""
    channels = [int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


COLOURS = """
    const painted = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? painted(element.parentElement) : colour;
    };
    return [...document.body.querySelectorAll("*")]
        .filter(element => [...element.childNodes].some(
            node => node.nodeType === Node.TEXT_NODE && node.data.trim()))
        .map(element => [element.innerText, getComputedStyle(element).color, painted(element)]);
"""


@in_chromium
@pytest.mark.parametrize(
    ("scheme", "width"),
    [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390), ("light", 320)],
)
def test_how_it_looks(
    chromium: webdriver.Chrome, service: Service, tmp_path: Path, scheme: str, width: int
) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 500},
    )
    console(chromium)
    chromium.get(service.url)
    assert console(chromium) == []
    assert chromium.execute_script("return document.scripts.length") == 0
    wide = "return [document.documentElement.scrollWidth, innerWidth, document.body.clientWidth]"
    scrolled, window, body = chromium.execute_script(wide)
    assert scrolled <= window
    assert body <= window == width
    colours = chromium.execute_script(COLOURS)
    assert len(colours) > 15
    for text, colour, background in colours:
        light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, text
        assert (luminance(background) > 0.5) is (scheme == "light")
    shot = chromium.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    picture = tmp_path / f"{scheme}-{width}.png"
    picture.write_bytes(base64.b64decode(shot["data"]))
    print(picture)


@in_chromium
def test_one_click_selects_its_lines(chromium: webdriver.Chrome, service: Service) -> None:
    chromium.get(service.url)
    chromium.find_element(By.CSS_SELECTOR, "pre code").click()
    selected = chromium.execute_script("return getSelection().toString()")
    page = service.http.get("/", headers=AS_A_BROWSER).text
    assert selected.strip() == conversation(page).strip()


class Blank(http.server.BaseHTTPRequestHandler):
    """A page of somebody else's."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>another origin</title><link rel=icon href=data:,>"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not a word."""


@contextmanager
def serving_blank() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(10)


FETCH = """
    const [url, options, size, done] = arguments;
    if (size) options.body = new Uint8Array(size);
    fetch(url, options).then(
        async answer => done({
            status: answer.status,
            headers: Object.fromEntries(answer.headers),
            text: await answer.text(),
        }),
        error => done({error: String(error)}));
"""


class Elsewhere:
    """A page of another origin than the service's, in Chromium."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self._driver = driver
        driver.get(url)

    def fetch(self, url: str, *, size: int = 0, **options: object) -> Any:
        """What a page's script sees of an answer; `size` sends so many zeros."""
        answer = self._driver.execute_async_script(FETCH, url, options, size)
        assert "error" not in answer, answer
        return answer


@pytest.fixture
def elsewhere(chromium: webdriver.Chrome) -> Iterator[Elsewhere]:
    with serving_blank() as url:
        yield Elsewhere(chromium, url)


@in_chromium
def test_another_origin_uploads_fetches_and_deletes(
    elsewhere: Elsewhere, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = "an encrypted bundle"
    proof = sign(KEY, bundle.encode())
    with caplog.at_level("INFO", logger="service.http.access_log"):
        sent = elsewhere.fetch(
            f"{service.url}/upload", method="POST", body=bundle, headers={**proof, "X-TTL": "60"}
        )
    asked = [record.getMessage().split()[:3] for record in caplog.records]
    assert asked == [["OPTIONS", "/upload", "200"], ["POST", "/upload", "200"]]
    assert sent["headers"]["location"] == f"/files/{sent['text']}"

    url = f"{service.url}{sent['headers']['location']}"
    got = elsewhere.fetch(url, headers=proof)
    assert (got["status"], got["text"]) == (200, bundle)
    digest = base64.b64encode(hashlib.sha256(bundle.encode()).digest()).decode()
    assert got["headers"]["repr-digest"] == f"sha-256=:{digest}:"
    assert got["headers"]["sunset"] == sent["headers"]["sunset"]
    assert {"etag", "last-modified", "accept-ranges", "content-disposition"} <= got[
        "headers"
    ].keys()

    rest = {**proof, "Range": "bytes=3-", "If-Range": got["headers"]["etag"]}
    part = elsewhere.fetch(url, headers=rest)
    assert (part["status"], part["text"]) == (206, bundle[3:])
    assert part["headers"]["content-range"] == f"bytes 3-{len(bundle) - 1}/{len(bundle)}"

    other = elsewhere.fetch(url, headers={**proof, "If-Match": '"another"'})
    assert (other["status"], json.loads(other["text"])["code"]) == (412, "precondition_failed")
    assert elsewhere.fetch(url, method="DELETE", headers=proof)["status"] == 204
    again = elsewhere.fetch(url, headers=proof)
    assert (again["status"], json.loads(again["text"])["code"]) == (404, "not_found")


@in_chromium
def test_another_origin_reads_what_went_wrong(
    elsewhere: Elsewhere, serve: Serve, store: Store
) -> None:
    with Proxy(store.endpoint_url) as proxy:
        service = serve(endpoint_url=proxy.url, max_bundle_size=1000)
        url = f"{service.url}/files/{service.upload(b'bundle')}"
        proof = sign(KEY, b"bundle")
        wrong = sign("another key", b"another bundle")
        upload = f"{service.url}/upload"
        problems = [
            (400, "missing_header", elsewhere.fetch(url)),
            (401, "invalid_hmac", elsewhere.fetch(url, headers=wrong)),
            (404, "not_found", elsewhere.fetch(f"{service.url}/files/{uuid4()}", headers=proof)),
            (404, "not_found", elsewhere.fetch(f"{service.url}/nowhere")),
            (405, "method_not_allowed", elsewhere.fetch(upload)),
            (413, "bundle_too_large", elsewhere.fetch(upload, method="POST", size=1001)),
            (413, "bundle_too_large", elsewhere.fetch(upload, method="POST", size=20 << 20)),
            (
                416,
                "range_not_satisfiable",
                elsewhere.fetch(url, headers={**proof, "Range": "bytes=9-"}),
            ),
            (422, "hmac_mismatch", elsewhere.fetch(upload, method="POST", body="x", headers=proof)),
        ]
        proxy.faults.append(Fault("GetObjectTagging", Respond(403, "AccessDenied"), times=None))
        problems.append((503, "storage_unavailable", elsewhere.fetch(url, headers=proof)))
    for status, code, answer in problems:
        problem = json.loads(answer["text"])
        assert (answer["status"], problem["status"], problem["code"]) == (status, status, code)
        assert answer["headers"]["content-type"] == "application/problem+json"
    headers = {status: answer["headers"] for status, _, answer in problems}
    assert headers[401]["www-authenticate"] == "XMTP-HMAC-SHA256"
    assert headers[405]["allow"] == "POST"
    assert headers[416]["content-range"] == "bytes */6"
    assert int(headers[503]["retry-after"]) > 0
