"""Processes that are stopped at the end of a block, and free ports for them."""

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


def parent_death_signal(signal: Literal["KILL", "TERM"]) -> list[str]:
    """Return a prefix for a command. It makes the kernel send this signal when the parent ends.

    The kernel sends the signal when the thread that started the process ends. So the prefix is
    empty in all threads but the main thread, which ends last.
    """
    if shutil.which("setpriv") and threading.current_thread() is threading.main_thread():
        return ["setpriv", "--pdeathsig", signal, "--"]
    return []


class Daemons:
    """A temporary directory and processes, which are removed and stopped after the block."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="store-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self._log = (self.directory / "output.log").open("wb")
        self._running: list[subprocess.Popen[bytes]] = []
        # Not this process's own environment, which may have AWS keys, a Python path or a proxy.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
        }
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):  # A process stops before those that it depends on.
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
        self._temporary.cleanup()

    def run(self, *command: object) -> str:
        """Run a command to its end. Return its output."""
        completed = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            timeout=60,
            check=False,
        )
        self._log.write(completed.stdout.encode())
        if completed.returncode:
            raise self._failure(f"{command[0]} failed")
        return completed.stdout

    def start(self, *command: object, pass_fds: tuple[int, ...] = ()) -> None:
        """Start a process that stays in the foreground. It inherits the descriptors `pass_fds`."""
        self._running.append(
            subprocess.Popen(
                # The store then also ends if the tests get SIGKILL.
                [*parent_death_signal("KILL"), *map(str, command)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C ends the tests, which then end the stores.
            )
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll until the condition is true, for at most a minute and while all processes run."""
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                raise self._failure("The store does not respond")
            if any(process.poll() is not None for process in self._running):
                raise self._failure("The store has ended")
            time.sleep(0.05)

    def _failure(self, problem: str) -> RuntimeError:
        output = (self.directory / "output.log").read_text(errors="replace")
        return RuntimeError(f"{problem}. The end of its output:\n{output[-2000:]}")


def responds_ok(port: int, path: str) -> bool:
    """Return whether a server on this port responds with 200."""
    return responds(port, path, 200)


def responds(port: int, path: str, status: int) -> bool:
    """Return whether a server on this port responds with this status."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == status
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def free_ports(count: int) -> range:
    """Return consecutive free loopback ports, below the range that the kernel uses for clients."""
    for _ in range(100):
        # Not from a seed: other test runs at the same time could have the same seed.
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
