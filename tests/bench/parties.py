"""Those who take part in a benchmark, each a process of its own, and what they cost."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from botocore.handlers import add_expect_header

from service.s3.client import CLIENT_CONFIG
from tests.support import stores
from tests.support.services.metrics import metric_total
from tests.support.services.process import memory
from tests.support.services.replicas import Replica
from tests.support.stores import Store, free_ports

CONNECTIONS = 200
"""To the store, at most."""


@contextmanager
def store() -> Iterator[Store]:
    """The store of AWS_ENDPOINT_URL_S3, or MiniStack."""
    if chosen := stores.from_environment():
        yield chosen
    else:
        with stores.ministack() as running:
            yield running


@contextmanager
def delayed(url: str, seconds: float) -> Iterator[str]:
    """A URL that leads to another one and is so many seconds further away."""
    command = [sys.executable, "-m", "tests.bench.delay", url, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        try:
            yield it.stdout.readline().strip()
        finally:
            it.kill()


@asynccontextmanager
async def bare(url: str | None = None) -> AsyncIterator[Any]:
    """aioboto3's own client, with no more of the service's than its settings."""
    config = AioConfig(**CLIENT_CONFIG, max_pool_connections=CONNECTIONS)
    async with aioboto3.Session().client("s3", config=config, endpoint_url=url) as client:
        client.meta.events.unregister("before-call.s3", add_expect_header)
        yield client


class Service:
    """A replica, with its own figures."""

    def __init__(self, replica: Replica) -> None:
        self.url = replica.url
        self._pid = replica.pid

    @property
    def cpu(self) -> float:
        """Seconds of CPU that it has taken, to the nanosecond (clock_getcpuclockid(3))."""
        return time.clock_gettime((~self._pid << 3) | 2)

    @property
    def peak(self) -> int:
        """Bytes of memory that it has had resident at most."""
        return memory(self._pid, "VmHWM")

    @property
    def s3_requests(self) -> int:
        """Calls that it has made to S3."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return round(metric_total(answer.read().decode(), "s3_request_seconds_count"))


@contextmanager
def service(variables: Mapping[str, str]) -> Iterator[Service]:
    """A service that logs as in production, to nowhere."""
    environment = {"PATH": os.environ["PATH"], **variables}
    with Path(os.devnull).open("wb") as nowhere:
        replica = Replica("the service", free_ports(1)[0], environment, nowhere)
        try:
            replica.start()
            replica.ready()
            yield Service(replica)
        finally:
            replica.kill()
