"""`make install-test`: install and run the project with other versions of Python and pip.

Each combination gets a copy of the project, a virtual environment with that version of pip, and a
package index that also has a newer release of some locked packages. The installed packages must
match the lock file, and the service that `make run` starts must return a bundle. Only the bundled
pip also installs the packages for `make test`, because that takes three times as long.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import httpx

from tests.infra.install.installed_service import (
    assert_returns_a_bundle,
    installation_environment,
    running_service,
)
from tests.support import repository
from tests.support.lock_files import add_release, installed_in, pins, version

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PIPS = {
    "the bundled pip": [],
    "pip 23.2.1": ["pip==23.2.1"],
    "the newest pip": ["--upgrade", "pip"],
}
"""The arguments of `pip install` that select each version of pip."""

NOT_LOCKED = ("message-history-server", "pip", "setuptools")
"""Packages in an environment that no lock file pins."""

NEWER = ("coverage", "urllib3", "moto", "aiobotocore")
"""Packages that get a release 9999. Other packages require them, two of them with extras."""

CONCURRENCY = 2
TIMEOUT = 400
"""Seconds for one command. An installation takes about 40 with a warm cache."""


def find_pythons() -> dict[str, Path]:
    """Return the supported Python versions on the PATH or in pyenv, by name."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    folders = [*os.get_exec_path(), *map(str, sorted(pyenv.glob("*/bin"), reverse=True))]
    pythons = {}
    for name in PYTHONS:
        for folder in folders:
            python = shutil.which(f"python{name}", path=folder)
            if name not in pythons and python and _can_create_environments(python):
                pythons[name] = Path(python)
    return pythons


def _can_create_environments(python: str) -> bool:
    """Check that Python starts and has venv, which Debian packages separately as python3-venv."""
    program = [python, "-c", "import ensurepip, venv"]
    return not subprocess.run(program, capture_output=True, check=False).returncode


def check(python: Path, pip: list[str], folder: Path) -> str:
    """Install and run a copy of the project. Return a summary, or raise `AssertionError`."""
    index = folder / "index"
    index.mkdir()
    for name in NEWER:
        add_release(index, name, "9999")
    project = folder / "project"
    repository.copy(project)
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {index}".strip()
    environment = {**installation_environment(), "PIP_FIND_LINKS": links, "PYTHON": str(python)}

    def run(*command: str | Path) -> None:
        result = subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert result.returncode == 0, f"{command}:\n{result.stdout}"

    run(python, "-m", "venv", ".venv")
    [site] = project.glob(".venv/lib/python*/site-packages")
    if pip:
        run(project / ".venv" / "bin" / "python", "-m", "pip", "install", "--quiet", *pip)
    started = time.monotonic()
    run("make", ".venv/dev-ready")
    times = f"dev packages installed in {time.monotonic() - started:.0f} s"
    assert_matches_lock(site, "requirements/dev.txt")
    with running_service(["make", "run"], project, environment) as url:
        assert_returns_a_bundle(url)
    if not pip:
        started = time.monotonic()
        run("make", ".venv/test-ready")
        times += f", test packages in another {time.monotonic() - started:.0f} s"
        assert_matches_lock(site, "requirements/test.txt")
    return f"pip {installed_in(site)['pip'].version}, {times}"


def assert_matches_lock(site: Path, lock: str) -> None:
    pinned = {f"{pin.name} {version(pin)}" for pin in pins(lock)}
    installed = {f"{name} {package.version}" for name, package in installed_in(site).items()}
    unknown = {name for name in installed - pinned if name.partition(" ")[0] not in NOT_LOCKED}
    assert not unknown, f"installed, but not in {lock}: {sorted(unknown)}"


async def check_all() -> bool:
    """Test all combinations, two at a time, and print a line for each. Return whether all work."""
    pythons = find_pythons()
    for name in PYTHONS:
        if name not in pythons:
            click.echo(f"Python {name}: skipped (not installed)")
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def check_one(name: str, pip: str) -> bool:
        async with semaphore:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    summary = await asyncio.to_thread(check, pythons[name], PIPS[pip], Path(folder))
                except (AssertionError, subprocess.TimeoutExpired, httpx.HTTPError) as error:
                    click.echo(f"Python {name}, {pip}: FAILED\n{error}")
                    return False
        click.echo(f"Python {name}, {pip}: works ({summary})")
        return True

    results = await asyncio.gather(*(check_one(name, pip) for name in pythons for pip in PIPS))
    return bool(results) and all(results)


if __name__ == "__main__":
    sys.exit(not asyncio.run(check_all()))
