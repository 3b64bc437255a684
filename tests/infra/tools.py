"""Programs that may not be installed, such as the linters from `make infra-tools`."""

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


def find_or_skip(find: Callable[[], T]) -> T:
    """Return the result of `find`. Skip the test if the program is not installed."""
    try:
        return find()
    except stores.NotInstalled as error:
        pytest.skip(str(error))


def find_tool(name: str) -> Path:
    """Return the path of a program from `make infra-tools`. Raises `NotInstalled`."""
    if not (INFRA_TOOLS / name).exists():
        raise stores.NotInstalled(f"{name} is not installed: run `make infra-tools`")
    return INFRA_TOOLS / name


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program from `make infra-tools`, without the user's settings."""
    return subprocess.run(
        [find_or_skip(lambda: find_tool(name)), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
