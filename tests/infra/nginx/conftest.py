"""nginx in front of real replicas, and in front of a socket that the test controls."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.infra.nginx.gateway import Gateway
from tests.infra.nginx.standalone import TRUSTED, StandaloneNginx, running_standalone
from tests.infra.stack.deployment import running_stack
from tests.infra.stack.nginx import find_nginx, listen_on
from tests.infra.tools import find_or_skip
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.stores import Store, free_ports
from tests.support.stores.access import s3_client


@pytest.fixture(scope="package")
def gateway(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Run nginx and two replicas, with a fault-injecting proxy in front of their store."""
    find_or_skip(find_nginx)
    output = tmp_path_factory.mktemp("nginx") / "output.log"
    with Proxy(store.endpoint_url) as proxy, output.open("ab") as log:
        proxied_store = Store("proxy", proxy.url, store.access_key, store.secret_key, store.region)
        bucket = f"history-{uuid4()}"
        variables = {
            "HISTORY_BUCKET": bucket,
            "HISTORY_PART_SIZE": "5MiB",
            "HISTORY_MAX_BUNDLE_SIZE": "16MiB",
            "HISTORY_DRAIN_DELAY": "0s",
            "HISTORY_READ_TIMEOUT": "3s",
        }
        with (
            running_stack(proxied_store, variables, output=log) as stack,
            httpx.Client(
                base_url=stack.url,
                headers={"Origin": "https://app.example"},
                trust_env=False,
                timeout=60,
            ) as http,
        ):
            s3 = s3_client(store)
            yield Gateway(stack, http, proxy, s3, bucket, output)
    LEAK_DETECTOR.search("nginx and replicas", output.read_text())


@pytest.fixture(autouse=True)
def _restore_gateway(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the faults of the store, and restart a replica that a test has killed."""
    yield
    if "gateway" in request.fixturenames:
        gateway: Gateway = request.getfixturevalue("gateway")
        gateway.store.faults.clear()
        for replica in gateway.stack.replicas:
            if replica.exit_code is not None:
                replica.start()
                replica.wait_until_ready()
                wait_until(partial(gateway.reaches, replica), timeout=10)


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[StandaloneNginx]:
    with running_standalone(tmp_path / "output.log", 0) as nginx:
        yield nginx


@pytest.fixture
def behind_proxy(tmp_path: Path) -> Iterator[StandaloneNginx]:
    """Run nginx with one trusted proxy, configured as the README describes."""
    port = free_ports(1)[0]
    listen = f"{listen_on(f'127.0.0.1:{port}')}set_real_ip_from {TRUSTED};\n"
    with running_standalone(tmp_path / "output.log", port, listen) as nginx:
        yield nginx
