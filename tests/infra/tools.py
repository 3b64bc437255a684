"""The linters that `make infra-tools` installs, and other programs that may be missing."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support import stores
from tests.support.repository import ROOT

T = TypeVar("T")

INFRA_TOOLS = ROOT / ".venv-infra" / "bin"


def installed(find: Callable[[], T]) -> T:
    """Return what `find` finds. Where that is not installed, the test is skipped."""
    try:
        return find()
    except stores.NotInstalled as error:
        pytest.skip(str(error))


def find_tool(name: str) -> Path:
    """One of those that `make infra-tools` installs. Raises `NotInstalled`."""
    if not (INFRA_TOOLS / name).exists():
        raise stores.NotInstalled(f"{name} is not installed: run `make infra-tools`")
    return INFRA_TOOLS / name


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it, without anybody's settings."""
    return subprocess.run(
        [installed(lambda: find_tool(name)), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
