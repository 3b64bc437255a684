"""A service that uses its store through the fault proxy.

Its memory is the smallest that is allowed, so a bundle larger than a part is read twice to verify
a proof.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from service.s3 import retries
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Service, running_service
from tests.support.stores import Store

PART = SMALL_PART


@pytest.fixture(scope="package")
def service_and_proxy(store: Store, s3: Any) -> Iterator[tuple[Service, Proxy]]:
    with pytest.MonkeyPatch.context() as patch, Proxy(store.endpoint_url) as proxy:
        patch.setattr(retries, "MAX_BACKOFF", 0.1)
        with running_service(
            store, s3, endpoint_url=proxy.url, part_size=PART, memory_budget=2 * PART
        ) as service:
            yield service, proxy


@pytest.fixture
def proxy(service_and_proxy: tuple[Service, Proxy]) -> Iterator[Proxy]:
    _, proxy = service_and_proxy
    proxy.requests.clear()
    yield proxy
    proxy.faults.clear()


@pytest.fixture
def proxied(service_and_proxy: tuple[Service, Proxy], proxy: Proxy) -> Iterator[Service]:
    """A service that uses its store through the proxy. Its bucket is empty at first."""
    service, _ = service_and_proxy
    yield service
    proxy.faults.clear()
    wait_until(lambda: not service.multipart_uploads())
    service.delete_objects()
