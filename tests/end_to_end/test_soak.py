"""Memory use under full load. It takes too long for every change, so only `make soak` runs it."""

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.clients import load
from tests.support.clients.sockets import connect_to, read_response
from tests.support.services.process import process_memory, service_process_for
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket

pytestmark = pytest.mark.soak

MIB = 1 << 20
KEY = "a signing key"


@pytest.mark.parametrize("idle", [0, 5000])
def test_memory_stays_within_its_limit(store: Store, s3: Any, idle: int) -> None:
    """200 uploads of 12 MiB and 200 first downloads of 7 MiB at once, in a memory pool of 64 MiB.

    In addition, `idle` connections are open on which no request is sent.
    """
    with (
        service_process_for(store, new_bucket(s3), HISTORY_MEMORY_BUDGET="64MiB") as (url, process),
        ExitStack() as connections,
    ):
        before = process_memory(process.pid, "VmRSS")
        for _ in range(idle):
            connection = connections.enter_context(connect_to(url))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_response(connection).startswith(b"HTTP/1.1 200")
        with_idle = process_memory(process.pid, "VmRSS")
        outcomes = asyncio.run(asyncio.wait_for(load.send_burst(url), 300))
        peak = process_memory(process.pid, "VmHWM")
    print(
        f"\n{dict(outcomes)}; {idle} idle connections: {before / MIB:.0f} MiB before, "
        f"{with_idle / MIB:.0f} with them, peak {peak / MIB:.0f}"
    )
    assert outcomes["other"] == 0
    assert outcomes["upload 200"]
    assert outcomes["download 200"]
    assert peak <= (64 + 160) * MIB
