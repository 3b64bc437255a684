"""The service as a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.key_leaks import LEAKS
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

SERVE = [sys.executable, "-m", "service"]


NO_CERTIFICATES = {"SSL_CERT_FILE": os.devnull}
"""For a process that speaks no TLS: to read the certificates takes a seventh of its start."""

TRACED = {name: value for name, value in os.environ.items() if name.startswith("COV")}
"""For a process that coverage shall see. It starts in twice the time, so only where it adds any."""


def clean_environment(**variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, **variables}


def said(line: str) -> None:
    """Pass on what a service says, but for what it says of every request."""
    if not re.search('"level": "(debug|info)"', line):
        sys.stderr.write(line)


@contextmanager
def serving(*arguments: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str], str]]:
    """Yield a service process's URL, the process, and what it printed until it was ready."""
    process = subprocess.Popen(
        [*SERVE, *arguments],
        env=clean_environment(
            HISTORY_PORT="0", HISTORY_LOG_LEVEL="debug", **NO_CERTIFICATES, **variables
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process, LEAKS.reading(process.stderr, said):
        try:
            url, banner = read_banner(process)
            yield url, process, banner
        finally:
            process.kill()


def read_banner(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read what a service prints until it is ready; its URL, and all of that."""
    assert process.stdout is not None
    banner = ""
    while not (ready := re.search(r"--output .*?(http://localhost:\d+)", banner)):
        line = process.stdout.readline()
        assert line, f"it ended with {process.wait()}: {banner}"
        banner += line
    return ready[1], banner


@contextmanager
def serving_bucket(
    store: Store, bucket: str, endpoint_url: str | None = None, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the URL and the process of a service in front of a bucket that is there."""
    with (
        aws_environment(store, endpoint_url) as variables,
        serving(HISTORY_BUCKET=bucket, **settings, **variables) as (url, process, _),
    ):
        yield url, process


def memory(pid: int, name: str) -> int:
    """Return so many bytes of a process's memory, by their name in /proc/PID/status."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("this system does not tell a process's memory: run it on Linux")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) << 10
