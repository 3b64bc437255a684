"""Replicas of the service as processes that end together with this process."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support import stores
from tests.support.repository import ROOT
from tests.support.stores.daemons import parent_death_signal

SERVICE_COMMAND = [sys.executable, "-m", "service"]

STARTUP_TIMEOUT = 30
"""Seconds in which a process has to respond to requests."""

SHUTDOWN_TIMEOUT = 60
"""Seconds in which a process has to end. The drain of nginx or a replica is always shorter."""

Output = IO[bytes] | None
"""Where processes write their logs: `None` is the output of this process."""


class StackFailed(Exception):
    """The stack did not start, or one of its processes ended. The message says why, in one line."""


class Process:
    """A process that ends together with this process, and can be started again."""

    def __init__(
        self,
        name: str,
        command: Sequence[object],
        environment: Mapping[str, str],
        output: Output,
        folder: Path = ROOT,
    ) -> None:
        self.name = name
        self.folder = folder
        self._command = list(map(str, command))
        self._environment = environment
        self._output = output
        self.stdout: IO[bytes] | int | None = output
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._running = subprocess.Popen(
            # The signal ends the process even if this process gets SIGKILL. It is SIGTERM, so
            # that nginx ends its workers too.
            [*parent_death_signal("TERM"), *self._command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self.stdout,
            stderr=self._output,
            start_new_session=True,  # Ctrl-C ends this process, which then ends its children.
        )

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, or `None` while the process runs or before it is started."""
        return None if self._running is None else self._running.poll()

    def send_signal(self, number: signal.Signals) -> None:
        if self._running is not None and self.exit_code is None:
            self._running.send_signal(number)

    def wait(self, timeout: float = SHUTDOWN_TIMEOUT) -> int:
        """Wait until the process ends. Kill it after `timeout` seconds. Return the exit code."""
        assert self._running is not None
        try:
            return self._running.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._running.wait()

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll until the condition is true. Raises `StackFailed` if the process ends before."""
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while not condition():
            if self.exit_code is not None:
                raise StackFailed(f"{self.name} ended with {self.exit_code}.")
            if time.monotonic() > deadline:
                raise StackFailed(f"{self.name} does not respond.")
            time.sleep(0.05)


class Replica(Process):
    """The service on a port that stays the same when it is started again.

    `folder` holds the package `service` that runs.
    """

    def __init__(
        self,
        name: str,
        port: int,
        environment: Mapping[str, str],
        output: Output,
        folder: Path = ROOT,
    ) -> None:
        variables = {"HISTORY_HOST": "127.0.0.1", "HISTORY_PORT": str(port)}
        super().__init__(name, SERVICE_COMMAND, {**environment, **variables}, output, folder)
        self.stdout = subprocess.DEVNULL  # Its banner names a URL that bypasses nginx.
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_ready(self) -> None:
        self.wait_until(lambda: stores.responds_ok(self.port, "/readyz"))
