"""The page at /: its format, its security headers, and the commands on it."""

import base64
import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import strategies as st

from service.http import about
from tests.http.about.page import BROWSER_ACCEPT, BROWSER_HEADERS, example_commands
from tests.support.clients.sockets import raw_request
from tests.support.fuzz import fuzz
from tests.support.services.thread import Service, StartService


def test_browsers_get_html_and_other_clients_one_line_of_text(service: Service) -> None:
    for headers in ({}, {"Accept": ""}, {"Accept": "*/*"}):
        text = service.http.get("/", headers=headers)
        assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert re.fullmatch(r"message-history-server \S+\n", text.text)
        assert "Content-Security-Policy" not in text.headers
    page = service.http.get("/", headers=BROWSER_HEADERS)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert len(page.content) < 6000
    head = service.http.head("/", headers=BROWSER_HEADERS)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(page.content))
    for response in (text, page, head):
        assert "Accept" in response.headers["Vary"].split(", ")
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("text/html", True),
        (BROWSER_ACCEPT, True),
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
def test_accept_header_decides_whether_html_is_preferred(accept: str, *, expected: bool) -> None:
    assert about.prefers_html(accept) is expected


MEDIA_RANGES = st.tuples(
    st.sampled_from(["text/html", "Text/HTML", "text/plain", "text/*", "text/html5"]),
    st.sampled_from(["", ";level=1", " ; x=q"]),
    st.none() | st.integers(0, 1000),
)
"""A media range (RFC 9110, section 12.5.1): a type, a parameter and a weight in thousandths."""


@fuzz(st.lists(MEDIA_RANGES, max_size=4, unique_by=lambda media_range: media_range[0].lower()))
def test_html_is_preferred_unless_plain_text_has_a_higher_weight(
    media_ranges: list[tuple[str, str, int | None]],
) -> None:
    weights = {name.lower(): 1000 if weight is None else weight for name, _, weight in media_ranges}
    accept = " ,\t".join(
        name + parameter + ("" if weight is None else f" ;q={weight / 1000:.3f}")
        for name, parameter, weight in media_ranges
    )
    html, plain = weights.get("text/html", 0), weights.get("text/plain", 0)
    assert about.prefers_html(accept) is (html > 0 and html >= plain)


@fuzz(st.text(max_size=40) | st.text("text/html;q=01. ,", max_size=40))
def test_any_accept_header_can_be_parsed(accept: str) -> None:
    assert not about.prefers_html(accept) or "text/html" in accept.lower()


def test_content_security_policy_allows_only_the_inline_style(service: Service) -> None:
    page = service.http.get("/", headers=BROWSER_HEADERS)
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
def test_commands_use_the_host_of_the_request(host: str) -> None:
    assert example_commands(page_for(host)).startswith(f"URL=http://{host}\n")


@pytest.mark.parametrize(
    "host",
    [
        *("a b", "a\nreboot", "a\n", "a;reboot", "a|reboot", "a&b", "$(reboot)", "`reboot`"),
        *("a'b", 'a"b', "a\\b", "a/b", "a?b", "a#b", "user@a", "a*", "{a,b}", "~", "<script>"),
        *("a:b", "a:", "a:123456", ":5558", "-a", ".a", "a.", "é.example", "a\0"),
        *("[::1", "[::1]x", "[$(reboot)]", "[]", pytest.param("a" * 254, id="long")),
    ],
)
def test_invalid_host_is_replaced_with_localhost(host: str) -> None:
    assert page_for(host) == page_for("") == page_for("localhost:5558")


def test_malicious_host_header_does_not_appear_in_the_response(service: Service) -> None:
    for host in (b"a;reboot", b"$(reboot)", b'"><script>', b"a'b"):
        request = b"GET / HTTP/1.1\r\nHost: %b\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
        response = raw_request(service.url, request % host)
        assert response.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
        assert host not in response
    response_without_host = raw_request(service.url, b"GET / HTTP/1.0\r\nAccept: text/html\r\n\r\n")
    lines = response_without_host.replace(b"<code>", b"\n")
    assert b"\nURL=http://localhost:5558\n" in lines


def test_commands_use_the_scheme_of_x_forwarded_proto(service: Service) -> None:
    for scheme, url in (("https", "https://a.example"), ("http", "http://a.example")):
        headers = {**BROWSER_HEADERS, "Host": "a.example", "X-Forwarded-Proto": scheme}
        page = service.http.get("/", headers=headers).text
        assert example_commands(page).startswith(f"URL={url}\n")


def test_page_shows_the_limits_of_this_server(start_service: StartService) -> None:
    page = about.page("", https=False, max_size=100 << 20, retention=604_800, require_hmac=True)
    for text in ("100\xa0MiB", "7\xa0days", "<code>X-SIGNING-KEY</code>, always"):
        assert text in page
    service = start_service(max_bundle_size=1_000_001, retention="1h", require_hmac=False)
    page = service.http.get("/", headers=BROWSER_HEADERS).text
    for text in ("1000001\xa0bytes", "1\xa0hour,", "the id is enough"):
        assert text in page


def test_commands_work_when_pasted_into_a_shell(service: Service, tmp_path: Path) -> None:
    objects_before = service.objects()
    commands = example_commands(service.http.get("/", headers=BROWSER_HEADERS).text)
    result = subprocess.run(
        ["bash", "-eu"],
        input=commands,
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("identical\ndeleted\n", "")
    assert service.objects() == objects_before
