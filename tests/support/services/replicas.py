"""Replicas of the service as processes, and any process that shall not outlive this one."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from tests.support import stores
from tests.support.repository import ROOT
from tests.support.stores.daemons import ends_with_parent

SERVICE = [sys.executable, "-m", "service"]

STARTUP = 30
"""Seconds that a process has to answer."""

PATIENCE = 60
"""Seconds that a process has to end: more than any drain of nginx or a replica takes."""

Output = IO[bytes] | None
"""Where processes log to: `None` is this one's own output."""


class Failed(Exception):
    """The running_stack does not run; the message says why, in one line."""


class Process:
    """A process that does not outlive this one, and can be started again."""

    def __init__(
        self, name: str, command: Sequence[object], environment: Mapping[str, str], output: Output
    ) -> None:
        self.name = name
        self._command = list(map(str, command))
        self._environment = environment
        self._output = output
        self.stdout: IO[bytes] | int | None = output
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._running = subprocess.Popen(
            # Even SIGKILL for this one then leaves none behind, nor nginx, told so softly, its
            # workers.
            [*ends_with_parent("TERM"), *self._command],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self.stdout,
            stderr=self._output,
            start_new_session=True,  # Ctrl-C is for this one; it ends what it started.
        )

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return None if self._running is None else self._running.poll()

    def send(self, number: signal.Signals) -> None:
        if self._running is not None and self.code is None:
            self._running.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code; after so many seconds it is killed."""
        assert self._running is not None
        try:
            return self._running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._running.wait()

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        """Poll, while it lives."""
        deadline = time.monotonic() + STARTUP
        while not condition():
            if self.code is not None:
                raise Failed(f"{self.name} ended with {self.code}.")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} does not answer.")
            time.sleep(0.05)


class Replica(Process):
    """The service on a port that stays the same when it is started again."""

    def __init__(
        self, name: str, port: int, environment: Mapping[str, str], output: Output
    ) -> None:
        variables = {"HISTORY_HOST": "127.0.0.1", "HISTORY_PORT": str(port)}
        super().__init__(name, SERVICE, {**environment, **variables}, output)
        self.stdout = subprocess.DEVNULL  # There it invites everybody to come past nginx.
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> None:
        self.until(lambda: stores.answers(self.port, "/readyz"))
