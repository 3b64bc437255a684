"""A service that reaches its store through the fault proxy."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.s3 import retries
from tests.support.polling import until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Service, running_service
from tests.support.stores import Store

PART = SMALL_PART


@pytest.fixture(scope="package")
def shared(store: Store, s3: Any) -> Iterator[tuple[Service, Proxy]]:
    with pytest.MonkeyPatch.context() as patch, Proxy(store.endpoint_url) as proxy:
        patch.setattr(retries, "MAX_BACKOFF", 0.1)
        with running_service(store, s3, endpoint_url=proxy.url, part_size=PART) as service:
            yield service, proxy


@pytest.fixture
def proxy(shared: tuple[Service, Proxy]) -> Iterator[Proxy]:
    _, proxy = shared
    proxy.requests.clear()
    yield proxy
    proxy.faults.clear()


@pytest.fixture
def proxied(shared: tuple[Service, Proxy], proxy: Proxy) -> Iterator[Service]:
    """A service that reaches its store through the proxy; its bucket is empty at first."""
    service, _ = shared
    yield service
    proxy.faults.clear()
    until(lambda: not service.multipart_uploads())
    service.clear()
