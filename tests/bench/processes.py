"""The processes of the benchmark beside its client: the store, the relay and the service."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support import stores
from tests.support.services.metrics import metric_total
from tests.support.services.process import process_memory
from tests.support.services.replicas import Replica
from tests.support.stores import Store, free_ports


@contextmanager
def running_store() -> Iterator[Store]:
    """Yield the store of AWS_ENDPOINT_URL_S3 if it is set, or start MiniStack."""
    if configured := stores.from_environment():
        yield configured
    else:
        with stores.ministack() as ministack:
            yield ministack


@contextmanager
def running_relay(store_url: str, delay: float) -> Iterator[str]:
    """Start a relay to the store, and yield the relay's URL. `delay` is in seconds."""
    command = [sys.executable, "-m", "tests.bench.relay", store_url, str(delay)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class Service:
    """A replica of the service, and the resources that it has used so far."""

    def __init__(self, replica: Replica) -> None:
        self.url = replica.url
        self._pid = replica.pid

    @property
    def cpu(self) -> float:
        """Seconds of CPU time, precise to the nanosecond (clock_getcpuclockid(3))."""
        return time.clock_gettime((~self._pid << 3) | 2)

    @property
    def peak_memory(self) -> int:
        """The largest number of bytes of resident memory so far."""
        return process_memory(self._pid, "VmHWM")

    @property
    def s3_requests(self) -> int:
        return self._metric("s3_request_seconds_count")

    @property
    def stored_receipts(self) -> int:
        """How many PutObjectTagging requests have succeeded."""
        labels = r'\{operation="PutObjectTagging",outcome="ok"\}'
        return self._metric(f"s3_request_seconds_count{labels}")

    def _metric(self, name: str) -> int:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            return round(metric_total(response.read().decode(), name))


@contextmanager
def running_service(variables: Mapping[str, str]) -> Iterator[Service]:
    """Start a service that logs as in production, to /dev/null."""
    environment = {"PATH": os.environ["PATH"], **variables}
    with Path(os.devnull).open("wb") as log:
        replica = Replica("the service", free_ports(1)[0], environment, log)
        try:
            replica.start()
            replica.wait_until_ready()
            yield Service(replica)
        finally:
            replica.kill()
