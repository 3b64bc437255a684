"""A service whose S3 requests pass the fault proxy, and a history to send."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.compatibility import xmtp_formats
from tests.end_to_end.compatibility.xmtp_formats import History
from tests.support.proxy import Fault, Proxy
from tests.support.services.thread import Service, running_service
from tests.support.stores import Store


@pytest.fixture(scope="package")
def service_and_proxy(store: Store, s3: Any) -> Iterator[tuple[Service, Proxy]]:
    """A service that needs no proof, and the proxy between it and its store."""
    with (
        Proxy(store.endpoint_url) as proxy,
        running_service(store, s3, endpoint_url=proxy.url, require_hmac=False) as service,
    ):
        yield service, proxy


@pytest.fixture
def faults(service_and_proxy: tuple[Service, Proxy]) -> Iterator[list[Fault]]:
    _, proxy = service_and_proxy
    yield proxy.faults
    proxy.faults.clear()


@pytest.fixture
def open_service(service_and_proxy: tuple[Service, Proxy], faults: list[Fault]) -> Service:
    return service_and_proxy[0]


@pytest.fixture(scope="package")
def short_history() -> History:
    return xmtp_formats.make_history(seed=5, size=300_000)
