"""The service in a separate process."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

SERVICE_COMMAND = [sys.executable, "-m", "service"]

NO_CERTIFICATES = {"SSL_CERT_FILE": os.devnull}
"""For a process that does not use TLS: reading the certificates takes a seventh of its startup."""

COVERAGE_VARIABLES = {name: value for name, value in os.environ.items() if name.startswith("COV")}
"""For a process whose coverage counts. Measuring doubles its startup time, so few tests do it."""


def clean_environment(**variables: str) -> dict[str, str]:
    """Return these variables, and only PATH and HOME from this process's own environment."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**inherited, **variables}


def echo_problems(line: str) -> None:
    """Print a line that a service logged, unless its level is debug or info."""
    if not re.search('"level": "(debug|info)"', line):
        sys.stderr.write(line)


@contextmanager
def service_process(
    *arguments: str, **variables: str
) -> Iterator[tuple[str, subprocess.Popen[str], str]]:
    """Start a service. Yield its URL, the process, and what it printed until it was ready."""
    process = subprocess.Popen(
        [*SERVICE_COMMAND, *arguments],
        env=clean_environment(
            HISTORY_PORT="0", HISTORY_LOG_LEVEL="debug", **NO_CERTIFICATES, **variables
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process, LEAK_DETECTOR.search_output(process.stderr, echo_problems):
        try:
            url, banner = read_banner(process)
            yield url, process, banner
        finally:
            process.kill()


def read_banner(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read what a service prints until it is ready. Return its URL and the printed text."""
    assert process.stdout is not None
    banner = ""
    while not (ready := re.search(r"--output .*?(http://localhost:\d+)", banner)):
        line = process.stdout.readline()
        assert line, f"the service ended with {process.wait()}: {banner}"
        banner += line
    return ready[1], banner


@contextmanager
def service_process_for(
    store: Store, bucket: str, endpoint_url: str | None = None, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a service for an existing bucket. Yield its URL and the process."""
    with (
        aws_environment(store, endpoint_url) as variables,
        service_process(HISTORY_BUCKET=bucket, **settings, **variables) as (url, process, _),
    ):
        yield url, process


def process_memory(pid: int, name: str) -> int:
    """Return a process's memory in bytes. The name is a field of /proc/PID/status."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("this system does not report a process's memory: run the test on Linux")
    match = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    assert match is not None
    return int(match[1]) << 10
