"""Processes that are gone at the end, and ports for them."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Literal, Self


def ends_with_parent(signal: Literal["KILL", "TERM"]) -> list[str]:
    """Return what to put before a command, so that it gets this signal when its parent has ended.

    The signal is bound to the thread that starts the process, so only the main thread, which ends
    last, may ask for it.
    """
    if shutil.which("setpriv") and threading.current_thread() is threading.main_thread():
        return ["setpriv", "--pdeathsig", signal, "--"]
    return []


class Daemons:
    """A directory and processes that are gone after the block."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="store-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self._log = (self.directory / "output.log").open("wb")
        self._running: list[subprocess.Popen[bytes]] = []
        # Nothing of this process's own environment: neither AWS keys, nor a Python path or a proxy.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
        }
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):  # Each still has those it depends on.
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
        self._temporary.cleanup()

    def run(self, *command: object) -> None:
        """Runs a command to its end."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise self._failure(f"{command[0]} failed")

    def start(self, *command: object, keep: tuple[int, ...] = ()) -> None:
        """Starts a process that stays in the foreground; it inherits the descriptors to `keep`."""
        self._running.append(
            subprocess.Popen(
                # Even SIGKILL for the tests then leaves no store behind.
                [*ends_with_parent("KILL"), *map(str, command)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=keep,
                start_new_session=True,  # Ctrl-C is for the tests; they end what they started.
            )
        )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Polls for at most a minute, as long as all processes live."""
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                raise self._failure("The store does not answer")
            if any(process.poll() is not None for process in self._running):
                raise self._failure("The store has ended")
            time.sleep(0.05)

    def _failure(self, what: str) -> RuntimeError:
        output = (self.directory / "output.log").read_text(errors="replace")
        return RuntimeError(f"{what}. The end of its output:\n{output[-2000:]}")


def answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def free_ports(count: int) -> range:
    """Loopback ports in a row that are free, below those that connections are given."""
    for _ in range(100):
        # Not from a seed: tests that run elsewhere at the same time may have the same one.
        first = random.SystemRandom().randrange(10_000, 30_000, count)
        ports = range(first, first + count)
        try:
            for port in ports:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return ports
    raise RuntimeError("There are no free ports")
