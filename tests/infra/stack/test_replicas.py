"""Two replicas share a bucket, and are replaced in turn without any client's notice."""

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.infra.stack.deployment import Stack, running_stack
from tests.infra.stack.nginx import find_nginx
from tests.infra.tools import installed
from tests.support.clients.signing import sign
from tests.support.polling import until
from tests.support.services.replicas import Replica
from tests.support.stores import Store

MIB = 1 << 20
KEY = "a signing key"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nginx and the replicas log."""
    return tmp_path_factory.mktemp("stack") / "output.log"


@pytest.fixture(scope="module")
def running(store: Store, output: Path) -> Iterator[Stack]:
    installed(find_nginx)
    variables = {
        "HISTORY_BUCKET": f"history-{uuid4()}",
        "HISTORY_PART_SIZE": "5MiB",
        "HISTORY_DRAIN_DELAY": "3s",
        "HISTORY_LOG_LEVEL": "warning",
    }
    with output.open("ab") as log, running_stack(store, variables, output=log) as started:
        yield started


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    "bundles", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_what_one_replica_took_the_other_has_at_once(running: Stack, bundles: int) -> None:
    one, other = (
        httpx.Client(base_url=replica.url, trust_env=False, timeout=30)
        for replica in running.replicas
    )
    with one, other:
        for number in range(bundles):
            bundle = os.urandom(6 * MIB if number % 25 == 0 else 2000)
            bundle_id = one.post("/upload", content=bundle).text
            answer = other.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert answer.status_code == 200, f"bundle {number}: {answer.text}"
            assert answer.content == bundle
            one, other = other, one


@dataclass
class Load:
    """Clients that upload, fetch in every way, and delete, and note whatever went wrong.

    What failed they try once more, when they are told to. Each has an address of its own, as nginx
    has limits for each.
    """

    url: str
    transfers: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    """By the request's id, what became of it."""
    hopeless: list[str] = field(default_factory=list)
    """What the second try did not mend."""
    kept: dict[str, bytes] = field(default_factory=dict)
    enough: threading.Event = field(default_factory=threading.Event)
    clients: list[Future[None]] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.transfers.total()

    def run(self, client: int) -> None:
        dice = random.Random(client)
        transport = httpx.HTTPTransport(local_address=f"127.0.1.{client + 1}")
        with httpx.Client(base_url=self.url, transport=transport, timeout=60) as http:
            while not self.enough.is_set():
                self._round_trip(http, dice)

    def _round_trip(self, http: httpx.Client, dice: random.Random) -> None:
        bundle = dice.randbytes(dice.choice([100, 20_000, 20_000, 300_000, 6 * MIB]))
        proof = sign(KEY, bundle)
        bound = {"X-HMAC": proof["X-HMAC"]} if dice.random() < 0.7 else {}
        uploaded = self._ask(http, "POST", "/upload", 200, headers=bound, content=bundle)
        if uploaded is None:
            return
        path = f"/files/{uploaded.text}"
        self.kept[uploaded.text] = bundle
        whole = self._ask(http, "GET", path, 200, headers=proof)
        part = self._ask(http, "GET", path, 206, headers={**proof, "Range": "bytes=10-59"})
        self._ask(http, "HEAD", path, 200, headers=proof)
        for answer, wanted in ((whole, bundle), (part, bundle[10:60])):
            if answer is not None and answer.content != wanted:
                self.hopeless.append(f"GET: {len(answer.content)} bytes of {len(wanted)}")
        if dice.random() < 0.3:
            del self.kept[uploaded.text]
            self._ask(http, "DELETE", path, 204, headers=proof)

    def _ask(
        self, http: httpx.Client, method: str, path: str, wanted: int, **options: Any
    ) -> httpx.Response | None:
        # Of a DELETE that was cut short, 404 tells the second time that it is done.
        for good in ({wanted}, {wanted, 404} if method == "DELETE" else {wanted}):
            request_id = uuid4().hex
            options["headers"] = {**options["headers"], "X-Request-Id": request_id}
            try:
                answer = http.request(method, path, **options)
            except httpx.TransportError as error:
                self.errors[request_id] = f"{method}: {error!r}"
                continue
            self.transfers[method] += 1
            if answer.status_code in good:
                return answer
            self.errors[request_id] = f"{method}: {answer.status_code} {answer.text[:200]}"
            # At once, a POST may meet what nginx still keeps open to a replica that was killed.
            time.sleep(float(answer.headers.get("Retry-After", 0)))
        self.hopeless.append(self.errors[request_id])
        return None


def asked(output: Path, request_id: str) -> str:
    """Which replicas nginx asked."""
    line = re.compile(rf'"request_id":"{request_id}",.*"replica":"([^"]*)"')
    found: list[str] = []

    def look() -> bool:
        found[:] = line.findall(output.read_text())
        return bool(found)

    until(look)
    [replicas] = found
    return replicas


def leave(replica: Replica, number: signal.Signals) -> None:
    """Let a replica go, and come back."""
    replica.send(number)
    code = replica.wait()
    assert number == signal.SIGKILL or code == 0
    replica.start()
    replica.ready()


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    ("transfers", "kills"),
    [
        (200, 0),
        pytest.param(5000, 1, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_replicas_leave_in_turn_and_no_client_notices(
    running: Stack, output: Path, transfers: int, kills: int
) -> None:
    """But those whose transfer runs on a replica that is killed; a second try then succeeds."""
    load = Load(running.url)
    clients = 6
    with ThreadPoolExecutor(clients) as pool:
        load.clients += [pool.submit(load.run, client) for client in range(clients)]
        try:
            wait(load, transfers // 4)
            leave(running.replicas[0], signal.SIGTERM)
            wait(load, transfers // 2)
            leave(running.replicas[1], signal.SIGTERM)
            assert load.errors == {}
            if kills:
                wait(load, transfers * 3 // 4)
                leave(running.replicas[0], signal.SIGKILL)
            wait(load, transfers)
        finally:
            load.enough.set()
    for client in load.clients:
        client.result()
    print(f"\n{dict(load.transfers)}, kept {len(load.kept)}, errors: {load.errors}")
    assert load.hopeless == []
    assert len(load.errors) <= clients * kills
    for request_id, error in load.errors.items():
        assert f":{running.replicas[0].port}" in asked(output, request_id), error
    with httpx.Client(base_url=running.replicas[1].url, trust_env=False, timeout=60) as http:
        for bundle_id, bundle in load.kept.items():
            answer = http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert answer.status_code == 200
            assert answer.content == bundle


def wait(load: Load, transfers: int) -> None:
    deadline = time.monotonic() + 600
    while load.done < transfers:
        assert time.monotonic() < deadline
        assert not any(client.done() for client in load.clients)
        time.sleep(0.05)
