"""The page at / and the CORS headers, in Chromium."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.http.about.page import BROWSER_HEADERS, example_commands
from tests.support.clients.chromium import in_chromium, running_chromium
from tests.support.clients.signing import sign
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.services.thread import Service, StartService
from tests.support.stores import Store

KEY = "a signing key"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One Chromium for all tests."""
    with running_chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


def console(driver: webdriver.Chrome) -> list[Any]:
    """Return the console's messages since the last call: errors and violations of the policy."""
    messages: list[Any] = driver.execute("getLog", {"type": "browser"})["value"]
    return messages


def luminance(colour: str) -> float:
    """Return the relative luminance, as WCAG defines it, of a CSS `rgb()` colour."""
    channels = [int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]]
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in channels
    ]
    return sum(
        value * weight for value, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True)
    )


COLOURS = """
    const background = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? background(element.parentElement) : colour;
    };
    return [...document.body.querySelectorAll("*")]
        .filter(element => [...element.childNodes].some(
            node => node.nodeType === Node.TEXT_NODE && node.data.trim()))
        .map(element => [element.innerText, getComputedStyle(element).color, background(element)]);
"""


@in_chromium
@pytest.mark.parametrize(
    ("scheme", "width"),
    [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390), ("light", 320)],
)
def test_page_is_readable_and_fits_the_window(
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
    scroll_width, window_width, body_width = chromium.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth, document.body.clientWidth]"
    )
    assert scroll_width <= window_width
    assert body_width <= window_width == width
    colours = chromium.execute_script(COLOURS)
    assert len(colours) > 15
    for text, colour, background in colours:
        lighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, text
        assert (luminance(background) > 0.5) is (scheme == "light")
    screenshot = chromium.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    image = tmp_path / f"{scheme}-{width}.png"
    image.write_bytes(base64.b64decode(screenshot["data"]))
    print(image)


@in_chromium
def test_one_click_selects_the_commands(chromium: webdriver.Chrome, service: Service) -> None:
    chromium.get(service.url)
    chromium.find_element(By.CSS_SELECTOR, "pre code").click()
    selected = chromium.execute_script("return getSelection().toString()")
    page = service.http.get("/", headers=BROWSER_HEADERS).text
    assert selected.strip() == example_commands(page).strip()


class BlankPageHandler(http.server.BaseHTTPRequestHandler):
    """Serves a blank page: a page of another origin than the service's."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>another origin</title><link rel=icon href=data:,>"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serving_blank_page() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BlankPageHandler) as server:
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
        async response => done({
            status: response.status,
            headers: Object.fromEntries(response.headers),
            text: await response.text(),
        }),
        error => done({error: String(error)}));
"""


class OtherOrigin:
    """A page of another origin than the service's, open in Chromium."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self._driver = driver
        driver.get(url)

    def fetch(self, url: str, *, size: int = 0, **options: object) -> Any:
        """Return the response as a script sees it. With a `size`, send that many zero bytes."""
        response = self._driver.execute_async_script(FETCH, url, options, size)
        assert "error" not in response, response
        return response


@pytest.fixture
def other_origin(chromium: webdriver.Chrome) -> Iterator[OtherOrigin]:
    with serving_blank_page() as url:
        yield OtherOrigin(chromium, url)


@in_chromium
def test_page_of_another_origin_can_upload_download_and_delete(
    other_origin: OtherOrigin, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = "an encrypted bundle"
    proof = sign(KEY, bundle.encode())
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(bundle.encode()).digest()).decode()}:"
    with caplog.at_level("INFO", logger="service.http.access_log"):
        uploaded = other_origin.fetch(
            f"{service.url}/upload",
            method="POST",
            body=bundle,
            headers={**proof, "X-TTL": "60", "Repr-Digest": digest},
        )
    requests = [record.getMessage().split()[:3] for record in caplog.records]
    assert requests == [["OPTIONS", "/upload", "200"], ["POST", "/upload", "200"]]
    assert uploaded["headers"]["location"] == f"/files/{uploaded['text']}"

    url = f"{service.url}{uploaded['headers']['location']}"
    downloaded = other_origin.fetch(url, headers=proof)
    assert (downloaded["status"], downloaded["text"]) == (200, bundle)
    assert downloaded["headers"]["repr-digest"] == digest
    assert downloaded["headers"]["sunset"] == uploaded["headers"]["sunset"]
    assert {"etag", "last-modified", "accept-ranges", "content-disposition"} <= downloaded[
        "headers"
    ].keys()

    range_headers = {**proof, "Range": "bytes=3-", "If-Range": downloaded["headers"]["etag"]}
    partial = other_origin.fetch(url, headers=range_headers)
    assert (partial["status"], partial["text"]) == (206, bundle[3:])
    assert partial["headers"]["content-range"] == f"bytes 3-{len(bundle) - 1}/{len(bundle)}"

    refused = other_origin.fetch(url, headers={**proof, "If-Match": '"another"'})
    assert (refused["status"], json.loads(refused["text"])["code"]) == (412, "precondition_failed")
    assert other_origin.fetch(url, method="DELETE", headers=proof)["status"] == 204
    missing = other_origin.fetch(url, headers=proof)
    assert (missing["status"], json.loads(missing["text"])["code"]) == (404, "not_found")


@in_chromium
def test_page_of_another_origin_can_read_problems(
    other_origin: OtherOrigin, start_service: StartService, store: Store
) -> None:
    with Proxy(store.endpoint_url) as proxy:
        service = start_service(endpoint_url=proxy.url, max_bundle_size=1000)
        url = f"{service.url}/files/{service.upload(b'bundle')}"
        proof = sign(KEY, b"bundle")
        wrong_proof = sign("another key", b"another bundle")
        upload = f"{service.url}/upload"
        problems = [
            (400, "missing_header", other_origin.fetch(url)),
            (401, "invalid_hmac", other_origin.fetch(url, headers=wrong_proof)),
            (404, "not_found", other_origin.fetch(f"{service.url}/files/{uuid4()}", headers=proof)),
            (404, "not_found", other_origin.fetch(f"{service.url}/nowhere")),
            (405, "method_not_allowed", other_origin.fetch(upload)),
            (413, "bundle_too_large", other_origin.fetch(upload, method="POST", size=1001)),
            (413, "bundle_too_large", other_origin.fetch(upload, method="POST", size=20 << 20)),
            (
                416,
                "range_not_satisfiable",
                other_origin.fetch(url, headers={**proof, "Range": "bytes=9-"}),
            ),
            (
                422,
                "hmac_mismatch",
                other_origin.fetch(upload, method="POST", body="x", headers=proof),
            ),
        ]
        proxy.faults.append(Fault("GetObjectTagging", Respond(403, "AccessDenied"), times=None))
        problems.append((503, "storage_unavailable", other_origin.fetch(url, headers=proof)))
    for status, code, response in problems:
        problem = json.loads(response["text"])
        assert (response["status"], problem["status"], problem["code"]) == (status, status, code)
        assert response["headers"]["content-type"] == "application/problem+json"
    headers = {status: response["headers"] for status, _, response in problems}
    assert headers[401]["www-authenticate"] == "XMTP-HMAC-SHA256"
    assert headers[405]["allow"] == "POST"
    assert headers[416]["content-range"] == "bytes */6"
    assert int(headers[503]["retry-after"]) > 0
