"""nginx before real replicas, and before ports where nobody answers."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.infra.nginx.front import Front
from tests.infra.nginx.standalone import TRUSTED, Alone, alone_at
from tests.infra.stack.deployment import running_stack
from tests.infra.stack.nginx import find_nginx
from tests.infra.tools import installed
from tests.support.polling import until
from tests.support.proxy import Proxy
from tests.support.stores import Store, free_ports
from tests.support.stores.access import s3_client


@pytest.fixture(scope="package")
def front(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Have nginx and two replicas, with a proxy before their store that can make it slow."""
    installed(find_nginx)
    output = tmp_path_factory.mktemp("nginx") / "output.log"
    with Proxy(store.endpoint_url) as proxy, output.open("ab") as log:
        behind = Store("proxy", proxy.url, store.access_key, store.secret_key, store.region)
        bucket = f"history-{uuid4()}"
        variables = {
            "HISTORY_BUCKET": bucket,
            "HISTORY_PART_SIZE": "5MiB",
            "HISTORY_MAX_BUNDLE_SIZE": "16MiB",
            "HISTORY_DRAIN_DELAY": "0s",
            "HISTORY_READ_TIMEOUT": "3s",
        }
        with (
            running_stack(behind, variables, output=log) as running,
            httpx.Client(
                base_url=running.url,
                headers={"Origin": "https://app.example"},
                trust_env=False,
                timeout=60,
            ) as http,
        ):
            s3 = s3_client(store)
            yield Front(running, http, proxy, s3, bucket, output)


@pytest.fixture(autouse=True)
def _as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start a replica that a test has killed, and mend the store."""
    yield
    if "front" in request.fixturenames:
        front: Front = request.getfixturevalue("front")
        front.store.faults.clear()
        for replica in front.stack.replicas:
            if replica.code is not None:
                replica.start()
                replica.ready()
                until(partial(front.reaches, replica), seconds=10)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    with alone_at(tmp_path / "output.log", 0) as running:
        yield running


@pytest.fixture
def trusting(tmp_path: Path) -> Iterator[Alone]:
    """It has one trusted proxy, named where the README says."""
    port = free_ports(1)[0]
    listen = f"listen 127.0.0.1:{port};\nset_real_ip_from {TRUSTED};\n"
    with alone_at(tmp_path / "output.log", port, listen) as running:
        yield running
