"""The search for signing keys in the output of services finds keys that leak."""

import io
import logging

import httpx
import pytest

from tests.support.clients.signing import sign
from tests.support.key_leaks import LEAK_DETECTOR, MAX_KEYS, KeyLeakDetector
from tests.support.services.thread import Service

KEY = "a key that leaks"


@pytest.fixture
def leaks() -> KeyLeakDetector:
    """Another object than `LEAK_DETECTOR`, in which no test may leave a leak."""
    leaks = KeyLeakDetector()
    leaks.add_key(KEY)
    return leaks


@pytest.mark.parametrize(
    "name", ["service.http.routes", "botocore.hooks", "uvicorn.error", "asyncio"]
)
def test_key_in_a_log_record_is_found(leaks: KeyLeakDetector, name: str) -> None:
    log = logging.getLogger(name)
    with leaks.search_logs():
        log.debug("a proof with %s", "a key that no client uses")
        assert not leaks.findings
        log.debug("a proof with %s", KEY)
        log.info("a field", extra={"fields": {"header": KEY.encode()}})
        try:
            raise ValueError(KEY)
        except ValueError:
            log.debug("failed", exc_info=True)
    log.debug(KEY)
    assert len(leaks.findings) == 3
    assert all(test_key_in_a_log_record_is_found.__name__ in finding for finding in leaks.findings)


@pytest.mark.parametrize(
    ("path", "status"), [("/upload", 400), ("/files/x", 503), ("/metrics", 200)]
)
def test_key_in_a_response_is_found(leaks: KeyLeakDetector, path: str, status: int) -> None:
    echo = httpx.MockTransport(
        lambda request: httpx.Response(status, text=request.headers.get("X-SIGNING-KEY", ""))
    )
    with httpx.Client(base_url="http://x", transport=echo, event_hooks=leaks.httpx_hooks) as http:
        http.get(path, headers={"X-SIGNING-KEY": "the key of this request"})
        http.get("/files/x", headers={"X-SIGNING-KEY": "short"})
    assert len(leaks.findings) == 1


def test_key_in_the_output_of_a_process_is_found(leaks: KeyLeakDetector) -> None:
    forwarded = list[str]()
    with leaks.search_output(io.StringIO(f"one line\nanother with {KEY}\n"), forwarded.append):
        pass
    assert len(leaks.findings) == 1
    assert len(forwarded) == 2


@pytest.mark.parametrize("key", ["schlüssel und riegel".encode(), b"\xff\xfe not text \xfd"])
def test_key_with_other_bytes_than_ascii_is_found_in_every_form(
    leaks: KeyLeakDetector, key: bytes
) -> None:
    leaks.add_key(key)
    for text in (key.decode(errors="replace"), key.decode("latin-1"), f"{key!r}"):
        leaks.search("anywhere", f"the key is {text}.")
    assert len(leaks.findings) == 3


def test_only_the_latest_keys_are_searched_for(leaks: KeyLeakDetector) -> None:
    for number in range(MAX_KEYS):
        leaks.add_key(f"key number {number}")
    leaks.search("anywhere", f"key number {MAX_KEYS - 1}")
    leaks.search("anywhere", KEY)
    assert len(leaks.findings) == 1


def test_all_output_of_the_services_in_tests_is_searched(service: Service) -> None:
    before = LEAK_DETECTOR.search_counts.copy()
    service.fetch(service.upload(b"bundle"), sign("the key of another", b"bundle"))
    service.fetch(service.upload(b"bundle"))
    service.http.get("/metrics")
    searched = LEAK_DETECTOR.search_counts - before
    assert {"service", "botocore", "error", "metrics"} <= searched.keys()
