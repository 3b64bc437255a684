"""Two replicas share a bucket and restart in turn, without a failed request."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.infra.stack.deployment import Stack, running_stack
from tests.infra.stack.load import KEY, MIB, Load, wait_for_transfers
from tests.infra.stack.nginx import find_nginx
from tests.infra.tools import find_or_skip
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.services.replicas import Replica
from tests.support.stores import Store


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of nginx and the replicas."""
    return tmp_path_factory.mktemp("stack") / "output.log"


@pytest.fixture(scope="module")
def stack(store: Store, output: Path) -> Iterator[Stack]:
    find_or_skip(find_nginx)
    variables = {
        "HISTORY_BUCKET": f"history-{uuid4()}",
        "HISTORY_PART_SIZE": "5MiB",
        "HISTORY_DRAIN_DELAY": "3s",
        "HISTORY_LOG_LEVEL": "warning",
    }
    with output.open("ab") as log, running_stack(store, variables, output=log) as stack:
        yield stack


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    "bundles", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_uploaded_bundle_is_available_at_once_on_the_other_replica(
    stack: Stack, bundles: int
) -> None:
    uploader, downloader = (
        httpx.Client(base_url=replica.url, trust_env=False, timeout=30)
        for replica in stack.replicas
    )
    with uploader, downloader:
        for number in range(bundles):
            bundle = os.urandom(6 * MIB if number % 25 == 0 else 2000)
            bundle_id = uploader.post("/upload", content=bundle).text
            response = downloader.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert response.status_code == 200, f"bundle {number}: {response.text}"
            assert response.content == bundle
            uploader, downloader = downloader, uploader


def replicas_of_request(output: Path, request_id: str) -> str:
    """Return the replicas that got a request, as nginx logs them."""
    line = re.compile(rf'"request_id":"{request_id}",.*"replica":"([^"]*)"')
    matches: list[str] = []

    def is_logged() -> bool:
        matches[:] = line.findall(output.read_text())
        return bool(matches)

    wait_until(is_logged)
    [replicas] = matches
    return replicas


def restart(replica: Replica, number: signal.Signals) -> None:
    """Stop a replica with this signal, and start it again."""
    replica.send_signal(number)
    code = replica.wait()
    assert number == signal.SIGKILL or code == 0
    replica.start()
    replica.wait_until_ready()


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    ("transfers", "kills"),
    [
        (200, 0),
        pytest.param(5000, 1, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_replicas_restart_in_turn_without_failed_requests(
    stack: Stack, output: Path, transfers: int, kills: int
) -> None:
    """Only transfers on a replica that is killed fail, and their retries succeed."""
    load = Load(stack.url)
    clients = 6
    with ThreadPoolExecutor(clients) as pool:
        load.clients += [pool.submit(load.run, client) for client in range(clients)]
        try:
            wait_for_transfers(load, transfers // 4)
            restart(stack.replicas[0], signal.SIGTERM)
            wait_for_transfers(load, transfers // 2)
            restart(stack.replicas[1], signal.SIGTERM)
            assert load.errors == {}
            if kills:
                wait_for_transfers(load, transfers * 3 // 4)
                restart(stack.replicas[0], signal.SIGKILL)
            wait_for_transfers(load, transfers)
        finally:
            load.stopping.set()
    for client in load.clients:
        client.result()
    print(f"\n{dict(load.transfers)}, bundles: {len(load.bundles)}, errors: {load.errors}")
    assert load.failures == []
    assert len(load.errors) <= clients * kills
    for request_id, error in load.errors.items():
        assert f":{stack.replicas[0].port}" in replicas_of_request(output, request_id), error
    with httpx.Client(base_url=stack.replicas[1].url, trust_env=False, timeout=60) as http:
        for bundle_id, bundle in load.bundles.items():
            response = http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert response.status_code == 200
            assert response.content == bundle
