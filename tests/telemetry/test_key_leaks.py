"""The guard that searches all that services say for signing keys finds them."""

import io
import logging

import httpx
import pytest

from tests.support.clients.signing import sign
from tests.support.key_leaks import LEAKS, MOST, Leaks
from tests.support.services.thread import Service

KEY = "a key that leaks"


@pytest.fixture
def leaks() -> Leaks:
    """Another one than that of the tests, which has to find nothing."""
    leaks = Leaks()
    leaks.used(KEY)
    return leaks


@pytest.mark.parametrize(
    "name", ["service.http.routes", "botocore.hooks", "uvicorn.error", "asyncio"]
)
def test_a_key_in_a_log_record_is_found(leaks: Leaks, name: str) -> None:
    log = logging.getLogger(name)
    with leaks.listening():
        log.debug("a proof with %s", "a key that nobody has")
        assert not leaks.found
        log.debug("a proof with %s", KEY)
        log.info("a field", extra={"fields": {"header": KEY.encode()}})
        try:
            raise ValueError(KEY)
        except ValueError:
            log.debug("failed", exc_info=True)
    log.debug(KEY)
    assert len(leaks.found) == 3
    assert all(test_a_key_in_a_log_record_is_found.__name__ in found for found in leaks.found)


@pytest.mark.parametrize(
    ("path", "status"), [("/upload", 400), ("/files/x", 503), ("/metrics", 200)]
)
def test_a_key_in_an_answer_is_found(leaks: Leaks, path: str, status: int) -> None:
    echo = httpx.MockTransport(
        lambda request: httpx.Response(status, text=request.headers.get("X-SIGNING-KEY", ""))
    )
    with httpx.Client(base_url="http://x", transport=echo, event_hooks=leaks.hooks) as http:
        http.get(path, headers={"X-SIGNING-KEY": "the key of this request"})
        http.get("/files/x", headers={"X-SIGNING-KEY": "short"})
    assert len(leaks.found) == 1


def test_a_key_in_the_output_of_a_process_is_found(leaks: Leaks) -> None:
    passed_on = list[str]()
    with leaks.reading(io.StringIO(f"one line\nanother with {KEY}\n"), passed_on.append):
        pass
    assert len(leaks.found) == 1
    assert len(passed_on) == 2


@pytest.mark.parametrize("key", ["schlüssel und riegel".encode(), b"\xff\xfe no text \xfd"])
def test_a_key_that_is_no_text_is_found_however_it_is_written(leaks: Leaks, key: bytes) -> None:
    leaks.used(key)
    for text in (key.decode(errors="replace"), key.decode("latin-1"), f"{key!r}"):
        leaks.search("anywhere", f"it was {text}.")
    assert len(leaks.found) == 3


def test_the_latest_keys_are_searched_for(leaks: Leaks) -> None:
    for number in range(MOST):
        leaks.used(f"key number {number}")
    leaks.search("anywhere", f"key number {MOST - 1}")
    leaks.search("anywhere", KEY)
    assert len(leaks.found) == 1


def test_all_that_the_tests_services_say_is_searched(service: Service) -> None:
    before = LEAKS.searched.copy()
    service.fetch(service.upload(b"bundle"), sign("the key of another", b"bundle"))
    service.fetch(service.upload(b"bundle"))
    service.http.get("/metrics")
    searched = LEAKS.searched - before
    assert {"service", "botocore", "error", "metrics"} <= searched.keys()
