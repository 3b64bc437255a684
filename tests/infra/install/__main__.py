"""`make install-test`: `make run` and the installation of `make test`, with other Pythons and pips.

Each combination gets a copy of the project, a virtual environment with that version of pip, and a
package index that also has a newer release of some of the locked packages. What is installed must
be what the lock says, and the service that `make run` starts must return a bundle. The packages
for `make test` are installed with the bundled pip alone, as that takes three times as long.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx

from tests.support import repository
from tests.support.clients.signing import sign
from tests.support.lock_files import add_release, installed_in, pins, version
from tests.support.services.process import read_banner

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PIPS = {
    "the bundled pip": [],
    "pip 23.2.1": ["pip==23.2.1"],
    "the newest pip": ["--upgrade", "pip"],
}
"""What `pip install` is given before the project is installed."""

OURS = ("message-history-server", "pip", "setuptools")
"""What an environment has without a lock."""

NEWER = ("coverage", "urllib3", "moto", "aiobotocore")
"""Packages that get a release 9999: each is needed by another one, two of them with extras."""

AT_ONCE = 2
TIMEOUT = 400
"""Seconds for one command; an installation takes about 40 with a warm cache."""

RUN_TIMEOUT = 120
"""Seconds after which a service that has not ended by itself is killed."""


def pythons() -> dict[str, Path]:
    """Return the supported versions that are on the PATH, or that pyenv keeps, by name."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    folders = [*os.get_exec_path(), *map(str, sorted(pyenv.glob("*/bin"), reverse=True))]
    found = {}
    for name in PYTHONS:
        for folder in folders:
            python = shutil.which(f"python{name}", path=folder)
            if name not in found and python and _can_make_environments(python):
                found[name] = Path(python)
    return found


def _can_make_environments(python: str) -> bool:
    """Tell whether it starts, and has what Debian packages apart as python3-venv."""
    program = [python, "-c", "import ensurepip, venv"]
    return not subprocess.run(program, capture_output=True, check=False).returncode


def check(python: Path, pip: list[str], folder: Path) -> str:
    """Install and run a copy of the project; return what it came to, or raise `AssertionError`."""
    index = folder / "index"
    index.mkdir()
    for name in NEWER:
        add_release(index, name, "9999")
    project = folder / "project"
    repository.copy(project)
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "PATH")}
    configured = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {index}".strip()
    environment = {**kept, **configured, "PIP_FIND_LINKS": links, "PYTHON": str(python)}
    environment |= {"HISTORY_PORT": "0", "HISTORY_LOG_LEVEL": "warning"}

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}"

    run(python, "-m", "venv", ".venv")
    [site] = project.glob(".venv/lib/python*/site-packages")
    if pip:
        run(project / ".venv" / "bin" / "python", "-m", "pip", "install", "--quiet", *pip)
    began = time.monotonic()
    run("make", ".venv/dev-ready")
    times = f"dev {time.monotonic() - began:.0f} s"
    assert_as_locked(site, "requirements/dev.txt")
    with made_run(project, environment) as url:
        assert_returns_a_bundle(url)
    if not pip:
        began = time.monotonic()
        run("make", ".venv/test-ready")
        times += f", test {time.monotonic() - began:.0f} s more"
        assert_as_locked(site, "requirements/test.txt")
    return f"pip {installed_in(site)['pip'].version}, {times}"


def assert_as_locked(site: Path, lock: str) -> None:
    pinned = {f"{pin.name} {version(pin)}" for pin in pins(lock)}
    there = {f"{name} {found.version}" for name, found in installed_in(site).items()}
    unknown = {name for name in there - pinned if name.partition(" ")[0] not in OURS}
    assert not unknown, f"installed, but not in {lock}: {sorted(unknown)}"


@contextmanager
def made_run(project: Path, environment: dict[str, str]) -> Iterator[str]:
    """Yield the URL of the service that `make run` starts, and stop it as Ctrl-C does."""
    with subprocess.Popen(
        ["make", "run"],
        cwd=project,
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
        answer = http.post("/upload", content=bundle, headers=proof)
        assert answer.status_code == 200, answer.text
        assert http.get(f"/files/{answer.text}", headers=proof).content == bundle


async def check_all() -> bool:
    """Try all combinations, two at a time; print a line for each. Return whether all worked."""
    found = pythons()
    for name in PYTHONS:
        if name not in found:
            click.echo(f"Python {name}: not installed, so not tried")
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, pip: str) -> bool:
        async with turn:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    outcome = await asyncio.to_thread(check, found[name], PIPS[pip], Path(folder))
                except (AssertionError, subprocess.TimeoutExpired, httpx.HTTPError) as error:
                    click.echo(f"Python {name}, {pip}: FAILED\n{error}")
                    return False
        click.echo(f"Python {name}, {pip}: works, with {outcome}")
        return True

    works = await asyncio.gather(*(one(name, pip) for name in found for pip in PIPS))
    return bool(works) and all(works)


if __name__ == "__main__":
    sys.exit(not asyncio.run(check_all()))
