"""Programs that may not be installed: those of `make infra-tools` and `make kubernetes-tools`."""

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
KUBERNETES_TOOLS = ROOT / ".tools"


def find_or_skip(find: Callable[[], T]) -> T:
    """Return the result of `find`. Skip the test if the program is not installed."""
    try:
        return find()
    except stores.NotInstalled as error:
        pytest.skip(str(error))


def find_tool(name: str) -> Path:
    """Return the path of a program. Raises `NotInstalled`."""
    folder, target = INFRA_TOOLS, "`make infra-tools`"
    if name in ("helm", "helm3", "kustomize", "etcd", "kube-apiserver"):
        folder, target = KUBERNETES_TOOLS, "`make kubernetes-tools`, which needs Go 1.26"
    if not (folder / name).exists():
        raise stores.NotInstalled(f"{name} is not installed: run {target}")
    return folder / name


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program without the user's settings. Skip the test if it is not installed."""
    return subprocess.run(
        [find_or_skip(lambda: find_tool(name)), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
