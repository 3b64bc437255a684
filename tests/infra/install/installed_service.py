"""The service of an installation: starts it with a command, and exchanges a bundle with it.

`make install-test` and `make release-check` use this.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.clients.signing import sign
from tests.support.services.process import read_banner

RUN_TIMEOUT = 120
"""Seconds after which the service is killed if it is still running."""


def installation_environment() -> dict[str, str]:
    """Return the variables that pip and the service need, and no others of this process."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in ("HOME", "PATH") or name.startswith("PIP_")
    }
    return {**inherited, "HISTORY_PORT": "0", "HISTORY_LOG_LEVEL": "warning"}


@contextmanager
def running_service(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Start the service with its embedded store, yield its URL, and stop it as Ctrl-C does."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        watchdog = threading.Timer(RUN_TIMEOUT, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            url, _ = read_banner(process)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            watchdog.cancel()


def assert_returns_a_bundle(url: str) -> None:
    bundle = os.urandom(9 << 20)
    proof = sign("the key of an installation", bundle)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        response = http.post("/upload", content=bundle, headers=proof)
        assert response.status_code == 200, response.text
        assert http.get(f"/files/{response.text}", headers=proof).content == bundle
