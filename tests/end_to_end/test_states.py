"""After any sequence of events, the bucket holds the expected bundles, and nothing else.

Hypothesis generates the sequence: transfers by all kinds of clients, failures of S3, outages and
restarts of the service. `expected_bundles.py` keeps track of the bundles that must exist.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from service.s3 import retries
from tests.end_to_end.expected_bundles import Conditions, ExpectedBundles
from tests.support.clients import random_transfers
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, running_service
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket

pytestmark = pytest.mark.both_records

SETTINGS = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],  # A step takes seconds, so shrinking would take too long.
    suppress_health_check=list(HealthCheck),
)


SEEDS = st.integers(0, 2**32)
"""Seeds of random generators."""


class HistoryServer(RuleBasedStateMachine):
    """A service, a proxy between it and its store, and the bundles that must exist."""

    def __init__(self, store: Store, s3: Any) -> None:
        super().__init__()
        self._expected = ExpectedBundles()
        self._bucket = new_bucket(s3)
        self._store, self._s3 = store, s3
        self._stack, self._running = ExitStack(), ExitStack()
        self._clients = self._stack.enter_context(ThreadPoolExecutor())
        self._proxy = self._stack.enter_context(Proxy(store.endpoint_url))
        self._start_service()

    def _start_service(self) -> None:
        self._service = self._running.enter_context(
            running_service(
                self._store,
                self._s3,
                endpoint_url=self._proxy.url,
                bucket=self._bucket,
                part_size=SMALL_PART,
            )
        )

    def _is_ready(self) -> bool:
        return self._service.http.get("/readyz").is_success

    @property
    def _conditions(self) -> Conditions:
        return "S3 fails" if self._proxy.faults else "normal"

    @contextmanager
    def _during_transfers(
        self, seed_number: int, count: int, requests: int, conditions: Conditions
    ) -> Iterator[None]:
        """Run the block after new transfers have sent `requests` to S3, or have all ended."""
        target = len(self._proxy.requests) + requests
        running = self._start_transfers(seed_number, count, conditions)
        wait_until(
            lambda: (
                len(self._proxy.requests) >= target or all(transfer.done() for transfer in running)
            ),
            timeout=60,
        )
        yield
        for transfer in running:
            transfer.result()

    def _start_transfers(
        self, seed_number: int, count: int, conditions: Conditions
    ) -> list[Future[None]]:
        transfers = [
            random_transfers.transfer(Random(seed_number + number), self._expected.uploaded)
            for number in range(count)
        ]
        url = self._service.url
        return [
            self._clients.submit(self._expected.run, transfer, url, conditions)
            for transfer in transfers
        ]

    @rule(seed_number=SEEDS, count=st.integers(1, 8))
    def run_transfers(self, seed_number: int, count: int) -> None:
        for transfer in self._start_transfers(seed_number, count, self._conditions):
            transfer.result()

    @rule(seed_number=SEEDS, count=st.integers(1, 3))
    def add_faults(self, seed_number: int, count: int) -> None:
        self._proxy.faults += [
            random_transfers.fault(Random(seed_number + number)) for number in range(count)
        ]

    @rule()
    def end_faults(self) -> None:
        self._proxy.faults.clear()
        # After a start while S3 failed, it takes a second until the probe is repeated.
        wait_until(self._is_ready, timeout=10)
        self._expected.wait_for_cleanup(self._service)

    @rule(seed_number=SEEDS, count=st.integers(1, 8), requests=st.integers(1, 20))
    def outage(self, seed_number: int, count: int, requests: int) -> None:
        with self._during_transfers(seed_number, count, requests, "S3 fails"):
            self._proxy.disable()
        self._proxy.enable()
        self.end_faults()

    @rule(
        seed_number=SEEDS,
        count=st.integers(0, 4),
        requests=st.integers(0, 10),
        store_offline=st.booleans(),
    )
    def restart(self, seed_number: int, count: int, requests: int, *, store_offline: bool) -> None:
        """A graceful shutdown leaves nothing in the bucket, unless S3 prevents the cleanup."""
        can_clean_up = not store_offline and not self._proxy.faults
        with self._during_transfers(seed_number, count, requests, "the service stops"):
            if store_offline:
                self._proxy.disable()
            self._running.close()
        self._proxy.enable()
        if can_clean_up:
            assert not self._expected.unexpected(self._service)
        else:
            self._expected.run_lifecycle(self._service)
        self._start_service()

    @invariant()
    def no_bundle_is_missing(self) -> None:
        assert not self._expected.missing(self._service)

    def teardown(self) -> None:
        with self._stack, self._running:
            self.end_faults()
            self._expected.check(self._service)
            self._service.delete_objects()
        print(self._expected.summary())


def test_a_few_random_sequences(store: Store, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    few_steps = settings(SETTINGS, derandomize=True, max_examples=3, stateful_step_count=8)
    run_state_machine_as_test(lambda: HistoryServer(store, s3), settings=few_steps)  # type: ignore[arg-type]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_random_sequences(store: Store, s3: Any) -> None:
    many_steps = settings(SETTINGS, derandomize=False, max_examples=20, stateful_step_count=30)
    machine = seed(random_transfers.seed(soak=True))(lambda: HistoryServer(store, s3))
    run_state_machine_as_test(machine, settings=many_steps)  # type: ignore[arg-type]
