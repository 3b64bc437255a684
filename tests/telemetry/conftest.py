"""A service that exports its traces to a collector."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, Service, running_service
from tests.support.stores import Store
from tests.telemetry.collector import Collector, running


@pytest.fixture
def _info_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="service")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running() as collector:
        yield collector


@pytest.fixture(scope="module")
def proxy(store: Store) -> Iterator[Proxy]:
    with Proxy(store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def traced(store: Store, s3: Any, proxy: Proxy, collector: Collector) -> Iterator[Service]:
    """A service that exports its spans to the collector, soon after they end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=of%20the%20collector")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        with running_service(store, s3, endpoint_url=proxy.url, part_size=SMALL_PART) as service:
            yield service
