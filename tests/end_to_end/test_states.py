"""Whatever happens in whatever order, the bucket holds what was promised, and nothing else.

Hypothesis makes up the order: transfers by all sorts of clients, failures of S3, outages, restarts
of the service. `expected_bundles.py` knows what must come of it.
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
from tests.end_to_end.expected_bundles import Ledger, Weather
from tests.support.clients import random_transfers
from tests.support.polling import until
from tests.support.proxy import Proxy
from tests.support.services.thread import SMALL_PART, running_service
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket

SETTINGS = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],  # Steps of seconds are not shrunk in reasonable time.
    suppress_health_check=list(HealthCheck),
)


THROWS = st.integers(0, 2**32)
"""Seeds of dice."""


class History(RuleBasedStateMachine):
    """A service, its store behind a proxy, and what was promised to clients."""

    def __init__(self, store: Store, s3: Any) -> None:
        super().__init__()
        self._ledger = Ledger()
        self._bucket = new_bucket(s3)
        self._store, self._s3 = store, s3
        self._stack, self._running = ExitStack(), ExitStack()
        self._clients = self._stack.enter_context(ThreadPoolExecutor())
        self._proxy = self._stack.enter_context(Proxy(store.endpoint_url))
        self._start()

    def _start(self) -> None:
        self._service = self._running.enter_context(
            running_service(
                self._store,
                self._s3,
                endpoint_url=self._proxy.url,
                bucket=self._bucket,
                part_size=SMALL_PART,
            )
        )

    @property
    def _weather(self) -> Weather:
        return "S3 fails" if self._proxy.faults else "calm"

    @contextmanager
    def _in_the_middle(
        self, throws: int, count: int, requests: int, weather: Weather
    ) -> Iterator[None]:
        """Be where so many requests have come to S3 from transfers, unless these end before."""
        seen = len(self._proxy.requests) + requests
        running = self._begin(throws, count, weather)
        until(
            lambda: len(self._proxy.requests) >= seen or all(it.done() for it in running),
            seconds=60,
        )
        yield
        for it in running:
            it.result()

    def _begin(self, throws: int, count: int, weather: Weather) -> list[Future[None]]:
        made = [
            random_transfers.transfer(Random(throws + number), self._ledger.told)
            for number in range(count)
        ]
        url = self._service.url
        return [self._clients.submit(self._ledger.run, it, url, weather) for it in made]

    @rule(throws=THROWS, count=st.integers(1, 8))
    def transfers(self, throws: int, count: int) -> None:
        """At the same time."""
        for running in self._begin(throws, count, self._weather):
            running.result()

    @rule(throws=THROWS, count=st.integers(1, 3))
    def fail(self, throws: int, count: int) -> None:
        self._proxy.faults += [
            random_transfers.fault(Random(throws + number)) for number in range(count)
        ]

    @rule()
    def mend(self) -> None:
        self._proxy.faults.clear()
        self._ledger.settle(self._service)

    @rule(throws=THROWS, count=st.integers(1, 8), requests=st.integers(1, 20))
    def outage(self, throws: int, count: int, requests: int) -> None:
        with self._in_the_middle(throws, count, requests, "S3 fails"):
            self._proxy.unplug()
        self._proxy.plug()
        self.mend()

    @rule(throws=THROWS, count=st.integers(0, 4), requests=st.integers(0, 10), away=st.booleans())
    def restart(self, throws: int, count: int, requests: int, *, away: bool) -> None:
        """It ends in order, and leaves nothing then, unless S3 does not let it clean up."""
        calm = not away and not self._proxy.faults
        with self._in_the_middle(throws, count, requests, "the service ends"):
            if away:
                self._proxy.unplug()
            self._running.close()
        self._proxy.plug()
        if calm:
            assert not self._ledger.strays(self._service)
        else:
            self._ledger.sweep(self._service)
        self._start()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert not self._ledger.lost(self._service)

    def teardown(self) -> None:
        with self._stack, self._running:
            self.mend()
            self._ledger.check(self._service)
            self._service.clear()
        print(self._ledger.table())


def test_some_states(store: Store, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)
    few = settings(SETTINGS, derandomize=True, max_examples=3, stateful_step_count=8)
    run_state_machine_as_test(lambda: History(store, s3), settings=few)  # type: ignore[arg-type]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_states(store: Store, s3: Any) -> None:
    many = settings(SETTINGS, derandomize=False, max_examples=20, stateful_step_count=30)
    history = seed(random_transfers.seed(soak=True))(lambda: History(store, s3))
    run_state_machine_as_test(history, settings=many)  # type: ignore[arg-type]
