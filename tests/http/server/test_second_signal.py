"""A second SIGTERM ends a replica at once, whatever still runs, and logs no traceback."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.http.server.replica import Replica, settings
from tests.support.clients.sockets import begin_upload, read_until_closed
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Hold, Proxy
from tests.support.services.process import COVERAGE_VARIABLES, service_process_for
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize("delay", ["0s", "60s"], ids=["cleaning up", "still serving"])
def test_second_signal_does_not_wait_for_what_cannot_be_removed_from_s3(
    store: Store, s3: Any, capsys: pytest.CaptureFixture[str], delay: str
) -> None:
    """S3 answers neither PutObject nor DeleteObject. The upload cannot be removed before."""
    bucket, timeout = new_bucket(s3), {"HISTORY_DRAIN_DELAY": delay, "HISTORY_DRAIN_TIMEOUT": "1s"}
    with (
        Proxy(store.endpoint_url) as proxy,
        service_process_for(store, bucket, proxy.url, **COVERAGE_VARIABLES, **timeout) as (
            url,
            process,
        ),
    ):
        replica = Replica(url, process, bucket, s3)
        proxy.faults += [Fault(None, Hold(), times=None)]
        with begin_upload(url, b"bundle", len(b"bundle")) as upload:
            wait_until(lambda: len(proxy.requests) > 0)
            process.send_signal(signal.SIGTERM)
            if delay == "0s":
                assert read_until_closed(upload).startswith(b"HTTP/1.1 503 ")
            else:
                wait_until(lambda: replica.get("/readyz").status_code == 503)
            with time_limit(3):
                process.send_signal(signal.SIGTERM)
                assert process.wait(5) == 0
    assert '"exception"' not in capsys.readouterr().err


def test_second_signal_ends_the_process_at_once_and_logs_no_error(
    store: Store, s3: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket, delay = new_bucket(s3), {"HISTORY_DRAIN_DELAY": "60s"}
    with service_process_for(store, bucket, **COVERAGE_VARIABLES, **delay) as (url, process):
        replica = Replica(url, process, bucket, s3)
        with replica.begin_upload(), time_limit(5):
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: replica.get("/readyz").status_code == 503)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
    assert not capsys.readouterr().err


@settings(drain_delay="0s", drain_timeout="60s")
def test_second_signal_during_the_drain_timeout_ends_the_process_at_once(replica: Replica) -> None:
    with replica.begin_upload(), time_limit(8):
        replica.process.send_signal(signal.SIGTERM)
        wait_until(lambda: replica.refuses_connections)
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(5) == 0
