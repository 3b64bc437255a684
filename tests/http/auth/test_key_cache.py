"""The cache of an identity provider's keys: when it asks the endpoint, and who waits for it."""

import asyncio
import gc
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from service.http.auth import jwks
from service.http.auth.jwks import KeyCache
from service.telemetry import timing
from tests.http.auth import jwks_server
from tests.http.auth.jwks_server import Endpoint, KeyPair
from tests.support.key_leaks import LEAK_DETECTOR

OLD, NEW = KeyPair("old"), KeyPair("new")
HOURS = 3600.0


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with jwks_server.running(OLD) as endpoint:
        yield endpoint


class Clock:
    """A clock that a test turns forward."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def finds(keys: KeyCache, key: KeyPair) -> bool:
    return await keys.find(key.key_id, key.algorithm) is not None


def first_step(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what this coroutine returns. Fail if it waits for something."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    pytest.fail("it waits")


async def until_asked(endpoint: Endpoint, requests: int) -> None:
    async with asyncio.timeout(30):
        while endpoint.requests < requests:  # noqa: ASYNC110 - another thread counts them
            await asyncio.sleep(0.01)


def test_removed_key_is_refused_after_an_idle_time(endpoint: Endpoint) -> None:
    """The first caller already gets the new keys, although the old ones are valid for a day."""

    async def main() -> None:
        clock = Clock()
        keys = KeyCache(endpoint.url, clock=clock)
        assert await finds(keys, OLD)
        endpoint.keys[:] = [NEW.public]
        clock.now += jwks.REFRESH_AFTER
        assert await finds(keys, OLD), "the keys are not too old"
        assert endpoint.requests == 1
        clock.now += 12 * HOURS
        assert not await finds(keys, OLD)
        assert await finds(keys, NEW)
        assert endpoint.requests == 2
        await keys.close()

    asyncio.run(main())


def test_callers_with_old_keys_wait_for_the_same_request(endpoint: Endpoint) -> None:
    async def main() -> None:
        clock = Clock()
        keys = KeyCache(endpoint.url, clock=clock)
        assert await finds(keys, OLD)
        endpoint.keys[:] = [NEW.public]
        endpoint.answer.clear()
        clock.now += 12 * HOURS
        callers = [asyncio.create_task(finds(keys, OLD)) for _ in range(20)]
        await until_asked(endpoint, 2)
        assert not any(caller.done() for caller in callers)
        endpoint.answer.set()
        assert not any(await asyncio.gather(*callers))
        assert endpoint.requests == 2
        await keys.close()

    asyncio.run(main())


@pytest.mark.parametrize("silent", [False, True])
def test_old_keys_are_used_while_the_endpoint_fails(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, *, silent: bool
) -> None:
    """It is asked once in ten seconds. Only the first caller waits, also if it does not respond."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 1.0)

    async def main() -> None:
        clock = Clock()
        keys = KeyCache(endpoint.url, clock=clock)
        assert await finds(keys, OLD)
        endpoint.keys[:] = [NEW.public]
        endpoint.status = 500
        if silent:
            endpoint.answer.clear()
        clock.now += 12 * HOURS
        assert await finds(keys, OLD)
        clock.now += jwks.RETRY_INTERVAL
        for _ in range(100):
            assert first_step(keys.find(OLD.key_id, OLD.algorithm))
        await until_asked(endpoint, 3)
        assert endpoint.requests == 3
        endpoint.status = 200
        endpoint.answer.set()
        clock.now += jwks.RETRY_INTERVAL
        assert await finds(keys, NEW)
        assert not await finds(keys, OLD)
        await keys.close()

    asyncio.run(main())


def test_keys_become_invalid_if_the_endpoint_fails_for_a_day(endpoint: Endpoint) -> None:
    async def main() -> None:
        clock = Clock()
        keys = KeyCache(endpoint.url, clock=clock)
        assert await finds(keys, OLD)
        endpoint.status = 500
        clock.now += jwks.MAX_AGE - 1
        assert await finds(keys, OLD)
        assert keys.available
        clock.now += 1
        assert not await finds(keys, OLD)
        assert not keys.available
        await keys.close()

    asyncio.run(main())


def test_log_does_not_hold_the_url_of_the_keys(caplog: pytest.LogCaptureFixture) -> None:
    """A URL may hold secrets, and the text of some of aiohttp's errors is the URL."""
    secret = LEAK_DETECTOR.add_key("a-secret-in-a-URL")

    async def main() -> None:
        for url in (f"https://user:{secret}@127.0.0.1:99999/", f"http://[::1/?key={secret}"):
            keys = KeyCache(url)
            assert await keys.find("a key", "RS256") is None
            await keys.close()

    asyncio.run(main())
    assert caplog.text.count("(InvalidUrlClientError): check HISTORY_JWT_JWKS_URL") == 2
    assert secret not in caplog.text


def test_unexpected_error_is_logged_and_limits_requests(caplog: pytest.LogCaptureFixture) -> None:
    """Encoding this host for DNS raises `UnicodeError`, which is no error of aiohttp."""

    async def main() -> None:
        clock = Clock()
        keys = KeyCache("https://a..b/", clock=clock)
        for failures in (1, 2):
            for _ in range(3):
                assert not await finds(keys, OLD)
                assert caplog.text.count("check HISTORY_JWT_JWKS_URL") == failures
            clock.now += jwks.RETRY_INTERVAL
        await keys.close()

    asyncio.run(main())


def test_cache_is_closed_while_it_fetches(endpoint: Endpoint) -> None:
    """An open session or an exception that nobody has seen would be a warning, and so an error."""

    async def main() -> None:
        endpoint.answer.clear()
        keys = KeyCache(endpoint.url)
        keys.refresh()
        await until_asked(endpoint, 1)
        await keys.close()

    asyncio.run(main())
    gc.collect()


def test_fetch_is_not_part_of_the_request_that_starts_it(endpoint: Endpoint) -> None:
    class Handler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            request_ids.append(timing.request_id())

    request_ids = list[str | None]()
    handler, log = Handler(), logging.getLogger(jwks.__name__)
    endpoint.status = 500

    async def main() -> None:
        keys = KeyCache(endpoint.url)
        timing.start("the id of a request")
        assert not await finds(keys, OLD)
        assert timing.request_id() == "the id of a request"
        await keys.close()

    log.addHandler(handler)
    try:
        asyncio.run(main())
    finally:
        log.removeHandler(handler)
    assert request_ids == [None]
