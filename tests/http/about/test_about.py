"""The page at /, as any client gets it."""

import base64
import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import strategies as st

from service.http import about
from tests.http.about.page import AS_A_BROWSER, BROWSER, conversation
from tests.support.clients.sockets import raw_request
from tests.support.fuzz import fuzz
from tests.support.services.thread import Serve, Service


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
    assert about.prefers_html(accept) is wanted


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
    assert about.prefers_html(accept) is (html > 0 and html >= plain)


@fuzz(st.text(max_size=40) | st.text("text/html;q=01. ,", max_size=40))
def test_any_accept_is_read(accept: str) -> None:
    assert not about.prefers_html(accept) or "text/html" in accept.lower()


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
    return about.page(host, https=False, max_size=1, retention=1, require_hmac=True)


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
    page = about.page("", https=False, max_size=100 << 20, retention=604_800, require_hmac=True)
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
