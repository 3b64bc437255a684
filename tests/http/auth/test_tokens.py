"""Upload tokens, in a header or in the path."""

from collections.abc import Mapping
from typing import Any

import pytest

from service.http import access_log
from service.http.auth.authorizer import hash_token
from tests.support.access_log import logged_requests
from tests.support.clients.signing import sign
from tests.support.clients.sockets import connect_to, problem_code, raw_request, read_exactly
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.polling import wait_until
from tests.support.services.thread import Service, StartService

TOKEN = LEAK_DETECTOR.add_key("CZyKBQ3RoAkPpYcB2uJ0mjCgN1t7hT4TJfWcM8vXq2s")
OTHER = LEAK_DETECTOR.add_key("a token with:other+characters")
WRONG = LEAK_DETECTOR.add_key(f"{TOKEN}x")
TOKENS = f"phones:{hash_token(TOKEN)}, desktop:{hash_token(OTHER)}"

SPELLINGS = (
    "/t/{}/upload",
    "/t/{}/upload/",
    "//t//{}//upload//",
    "/%74/{}/up%6Coad",
    "http://history.example/t/{}/upload",
    "HTTP://history.example//%74/{}//upload/",
)
"""Paths of an upload with a token."""


@pytest.fixture
def service(start_service: StartService) -> Service:
    return start_service(upload_tokens=TOKENS, require_hmac=False)


def post(service: Service, target: str, headers: Mapping[str, str] | None = None) -> bytes:
    """Upload a bundle to a request target that httpx would normalise."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nConnection: close\r\n{lines}"
    return raw_request(service.url, f"{head}\r\nbundle".encode())


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("target", SPELLINGS)
def test_token_in_the_path_allows_an_upload(service: Service, target: str) -> None:
    assert post(service, target.format(TOKEN)).startswith(b"HTTP/1.1 200 ")
    assert len(service.objects()) == 1


@pytest.mark.parametrize("target", SPELLINGS)
def test_wrong_token_in_the_path_is_refused(service: Service, target: str) -> None:
    response = post(service, target.format(WRONG))
    assert response.startswith(b"HTTP/1.1 401 ")
    assert problem_code(response) == b"unauthorized"
    assert service.objects() == []


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer   {TOKEN}  ", True),
        (f"Bearer {OTHER}", True),
        (f"Bearer {WRONG}", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer", False),
        ("Bearer ", False),
        (f"Bearer {hash_token(TOKEN)}", False),
        ("", False),
    ],
)
def test_header_allows_an_upload(service: Service, authorization: str, *, allowed: bool) -> None:
    response = post(service, "/upload", {"Authorization": authorization})
    assert response.startswith(b"HTTP/1.1 200 " if allowed else b"HTTP/1.1 401 ")
    assert len(service.objects()) == allowed


def test_answer_to_an_upload_without_a_token_says_what_to_send(service: Service) -> None:
    response = service.http.post("/upload", content=b"bundle")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["code"] == "unauthorized"
    assert "Authorization: Bearer" in response.json()["detail"]
    assert service.objects() == []


def test_refusal_is_sent_before_the_body(service: Service) -> None:
    with connect_to(service.url) as connection:
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nonly a part"
        )
        assert read_exactly(connection, 12) == b"HTTP/1.1 401"


@pytest.mark.parametrize(
    "token", [TOKEN, ".", "..", "%2e", "%2E%2e", "x%2F..", "x%2Fy%2F..%2F..", "%2F"]
)
def test_only_public_paths_are_accepted_after_a_token(service: Service, token: str) -> None:
    """Nginx takes `/t/./metrics` for `/t/metrics`, a path that would be a token alone."""
    for path in ("metrics", "readyz", "t/x/metrics", "%2Fmetrics", "./metrics"):
        response = raw_request(service.url, get(f"/t/{token}/{path}"))
        assert b"history_" not in response
        assert not response.endswith(b"ready\n")


@pytest.mark.parametrize("token", [TOKEN, WRONG, "x"])
def test_download_and_delete_need_no_token_and_ignore_one(service: Service, token: str) -> None:
    bundle_id = service.http.post(f"/t/{TOKEN}/upload", content=b"bundle").text
    proof = sign("a signing key", b"bundle")
    for prefix in ("", f"/t/{token}"):
        path = f"{prefix}/files/{bundle_id}"
        assert service.http.get(path, headers=proof).content == b"bundle"
        assert service.http.head(path, headers=proof).status_code == 200
    assert service.http.delete(f"/t/{token}/files/{bundle_id}", headers=proof).status_code == 204


def test_url_with_a_token_shows_the_page(service: Service) -> None:
    for path in (f"/t/{TOKEN}", f"/t/{TOKEN}/"):
        assert service.http.get(path).text.startswith("message-history-server ")


@pytest.mark.parametrize("headers", [{"X-HMAC": "1"}, {"X-TTL": "0"}])
def test_headers_are_checked_before_the_token(service: Service, headers: dict[str, str]) -> None:
    assert service.http.post("/upload", content=b"1", headers=headers).status_code == 400


def test_token_is_checked_before_the_size(start_service: StartService) -> None:
    service = start_service(upload_tokens=TOKENS, max_bundle_size=5)
    assert service.http.post("/upload", content=b"bundle").status_code == 401
    assert service.http.post(f"/t/{TOKEN}/upload", content=b"bundle").status_code == 413


def test_pages_of_other_origins_may_send_a_token(service: Service) -> None:
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    response = service.http.options("/upload", headers=headers)
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]


def test_name_of_the_token_is_logged_and_counted(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=access_log.__name__)
    service.http.post(f"/t/{TOKEN}/upload", content=b"bundle")
    service.http.post("/upload", content=b"bundle", headers={"Authorization": f"Bearer {WRONG}"})
    wait_until(lambda: caplog.text.count("POST /upload") == 2)
    callers = [line["caller"] for line in logged_requests(caplog)]
    assert callers[-2:] == ["phones", None]
    assert service.metrics()['history_uploads_total{caller="phones"}'] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/t/{}/nowhere",
        "/history/t/{}/upload",
        "/t/wrong/t/{}/upload",
        "//x//t//{}",
        "/t/{}",
        "/t/{}/t/{}/files/1",
        "/t/x%2F{}/upload",
    ],
)
def test_token_in_the_wrong_place_is_not_logged(
    service: Service, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("INFO", logger=access_log.__name__)
    raw_request(service.url, get(path.format(TOKEN, TOKEN)))
    wait_until(lambda: "/t/…" in caplog.text or "GET / 200" in caplog.text)
    assert TOKEN[:8] not in caplog.text


def test_anyone_may_upload_without_tokens(start_service: StartService) -> None:
    service = start_service()
    for path in ("/upload", "/t/anything/upload"):
        response: Any = service.http.post(path, content=b"bundle")
        assert response.status_code == 200
        assert response.headers["Location"] == f"/files/{response.text}"
    assert service.metrics()['history_uploads_total{caller=""}'] == 2
