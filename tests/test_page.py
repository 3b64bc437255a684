"""The page at /, by itself and in Chromium; and what a page of another origin can do here."""

import base64
import hashlib
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import strategies as st
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.remote_connection import RemoteConnection

from service import pages
from tests.clients import raw_request, sign
from tests.conftest import Serve, Service
from tests.fuzz import fuzz
from tests.proxy import Fault, Proxy, Respond
from tests.stores import Store

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NOT_INSTALLED = "Chromium is not installed: apt-get install chromium chromium-driver"

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"
AS_A_BROWSER = {"Accept": BROWSER}
KEY = "a signing key"


def conversation(page: str) -> str:
    [lines] = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page, flags=re.DOTALL)
    return html.unescape(lines)


def test_probes_get_a_line_and_browsers_the_page(service: Service) -> None:
    for accept in ({}, {"Accept": ""}, {"Accept": "*/*"}):
        line = service.http.get("/", headers=accept)
        assert line.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert re.fullmatch(r"message-history-server \S+\n", line.text)
        assert "Content-Security-Policy" not in line.headers
    page = service.http.get("/", headers=AS_A_BROWSER)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert len(page.content) < 6000
    head = service.http.head("/", headers=AS_A_BROWSER)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(page.content))
    for answer in (line, page, head):
        assert "Accept" in answer.headers["Vary"].split(", ")
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("text/html", True),
        (BROWSER, True),
        ("TEXT/HTML; Level=1", True),
        ("text/plain, text/html", True),
        ("text/plain, text/html;q=0.9", False),
        ("text/plain;q=0.5, text/html; q=0.9", True),
        ("text/html;q=0", False),
        ("text/html;q=0.000, */*", False),
        ("text/html;q=nonsense", True),
        ("text/html-not", False),
    ],
)
def test_what_prefers_html(accept: str, *, wanted: bool) -> None:
    assert pages.prefers_html(accept) is wanted


RANGES = st.tuples(
    st.sampled_from(["text/html", "Text/HTML", "text/plain", "text/*", "text/html5"]),
    st.sampled_from(["", ";level=1", " ; x=q"]),
    st.none() | st.integers(0, 1000),
)
"""A media range of RFC 9110, section 12.5.1: its type, a parameter, its weight in thousandths."""


@fuzz(st.lists(RANGES, max_size=4, unique_by=lambda ranges: ranges[0].lower()))
def test_what_prefers_html_by_weight(ranges: list[tuple[str, str, int | None]]) -> None:
    weights = {name.lower(): 1000 if weight is None else weight for name, _, weight in ranges}
    accept = " ,\t".join(
        name + parameter + ("" if weight is None else f" ;q={weight / 1000:.3f}")
        for name, parameter, weight in ranges
    )
    html, plain = weights.get("text/html", 0), weights.get("text/plain", 0)
    assert pages.prefers_html(accept) is (html > 0 and html >= plain)


@fuzz(st.text(max_size=40) | st.text("text/html;q=01. ,", max_size=40))
def test_any_accept_is_read(accept: str) -> None:
    assert not pages.prefers_html(accept) or "text/html" in accept.lower()


def test_the_policy_lets_the_one_style_through_and_no_more(service: Service) -> None:
    page = service.http.get("/", headers=AS_A_BROWSER)
    [style] = re.findall("<style>(.*?)</style>", page.text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = dict(
        directive.split(" ", 1) for directive in page.headers["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert not re.search(r"<script|<form|<iframe|\sstyle=|\son\w+=|url\(|@import", page.text)
    links = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    assert [link for link in links if not link.startswith("data:")] == ["/openapi.json"]


def page_for(host: str) -> str:
    return pages.page(host, https=False, limit=1, retention=1, require_hmac=True)


@pytest.mark.parametrize(
    "host",
    [
        "history.example",
        "history.example:8080",
        "history_server-1:5558",
        "192.0.2.1:5558",
        "[2001:db8::1]:5558",
    ],
)
def test_a_host_is_repeated(host: str) -> None:
    assert conversation(page_for(host)).startswith(f"URL=http://{host}\n")


@pytest.mark.parametrize(
    "host",
    [
        *("a b", "a\nreboot", "a\n", "a;reboot", "a|reboot", "a&b", "$(reboot)", "`reboot`"),
        *("a'b", 'a"b', "a\\b", "a/b", "a?b", "a#b", "user@a", "a*", "{a,b}", "~", "<script>"),
        *("a:b", "a:", "a:123456", ":5558", "-a", ".a", "a.", "é.example", "a\0"),
        *("[::1", "[::1]x", "[$(reboot)]", "[]", pytest.param("a" * 254, id="long")),
    ],
)
def test_nothing_but_a_host_is_repeated(host: str) -> None:
    assert page_for(host) == page_for("") == page_for("localhost:5558")


def test_a_hostile_host_over_the_wire(service: Service) -> None:
    for host in (b"a;reboot", b"$(reboot)", b'"><script>', b"a'b"):
        request = b"GET / HTTP/1.1\r\nHost: %b\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
        answer = raw_request(service.url, request % host)
        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
        assert host not in answer
    without = raw_request(service.url, b"GET / HTTP/1.0\r\nAccept: text/html\r\n\r\n")
    assert b"\nURL=http://localhost:5558\n" in without.replace(b"<code>", b"\n")


def test_it_says_https_behind_a_load_balancer(service: Service) -> None:
    for proto, url in (("https", "https://a.example"), ("http", "http://a.example")):
        headers = {**AS_A_BROWSER, "Host": "a.example", "X-Forwarded-Proto": proto}
        page = service.http.get("/", headers=headers).text
        assert conversation(page).startswith(f"URL={url}\n")


def test_it_tells_this_servers_limits(serve: Serve) -> None:
    page = pages.page("", https=False, limit=100 << 20, retention=604_800, require_hmac=True)
    for words in ("100\xa0MiB", "7\xa0days", "<code>X-SIGNING-KEY</code>, always"):
        assert words in page
    service = serve(max_bundle_size=1_000_001, retention="1h", require_hmac=False)
    page = service.http.get("/", headers=AS_A_BROWSER).text
    for words in ("1000001\xa0bytes", "1\xa0hour,", "the id is enough"):
        assert words in page


def test_its_lines_work_as_they_stand(service: Service, tmp_path: Path) -> None:
    before = service.objects()
    lines = conversation(service.http.get("/", headers=AS_A_BROWSER).text)
    said = subprocess.run(
        ["bash", "-eu"],
        input=lines,
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (said.stdout, said.stderr) == ("identical\ndeleted\n", "")
    assert service.objects() == before


# What follows needs a browser.

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
    with caplog.at_level("INFO", logger="service.journal"):
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
