"""make installs what the lock files pin."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.lock_files import (
    add_release,
    installed_in,
)
from tests.support.marks import only_ci
from tests.support.repository import ROOT

PURELIB = Path(sysconfig.get_path("purelib"))


BACKEND = """
import zipfile
from collections.abc import Mapping

def build_editable(directory, config_settings=None, metadata_directory=None):
    name = "project-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        metadata = "Metadata-Version: 2.1\\nName: project\\nVersion: 1\\n"
        wheel.writestr("project-1.dist-info/METADATA", metadata)
        wheel.writestr("project-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("project-1.dist-info/RECORD", "")
    return name
"""

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this Makefile, whose locks are older than the newest releases.

    It has what broke the installation once: a package that needs another one with an extra, and
    a newer release of that one on the index.
    """
    index = tmp_path / "index"
    folder = tmp_path / "project"
    (folder / "requirements").mkdir(parents=True)
    index.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    used = add_release(index, "used", "1.0")
    user = add_release(index, "user", "1.0", "used[toml]>=1.0")
    plugin = add_release(index, "plugin", "1.0", "user")
    for name in ("used", "user", "plugin"):
        add_release(index, name, "2.0")
    (folder / "requirements" / "dev.txt").write_text(user + used)
    (folder / "requirements" / "test.txt").write_text(plugin + user + used)
    return folder


def make_environment(project: Path) -> None:
    """Make the virtual environment beforehand, with this one's pip: `make` takes a while for it."""
    environment = project / ".venv"
    venv.create(environment, symlinks=True)
    for folder in PURELIB.glob("pip*"):
        shutil.copytree(folder, environment / folder.relative_to(sys.prefix))


def make(project: Path, target: str) -> subprocess.CompletedProcess[str]:
    index = project.parent / "index"
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PYTHON": sys.executable}
    return subprocess.run(
        ["make", "--silent", target],
        cwd=project,
        env={"PATH": os.environ["PATH"], "HOME": str(project), **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def versions(project: Path) -> dict[str, str]:
    site = project / ".venv" / PURELIB.relative_to(sys.prefix)
    return {name: there.version for name, there in installed_in(site).items() if name != "pip"}


@only_ci
def test_make_installs_the_pins_where_there_are_newer_releases(project: Path) -> None:
    """With the pip that runs these tests; `make install-test` tries other versions of pip."""
    make_environment(project)
    done = make(project, ".venv/dev-ready")
    assert done.returncode == 0, done.stderr
    dev = {"used": "1.0", "user": "1.0", "project": "1"}
    assert {name: versions(project)[name] for name in dev} == dev
    assert "plugin" not in versions(project)
    done = make(project, ".venv/test-ready")
    assert done.returncode == 0, done.stderr
    assert versions(project)["plugin"] == "1.0"


@only_ci
def test_make_notices_a_lock_that_is_not_complete(project: Path) -> None:
    make_environment(project)
    lock = project / "requirements" / "dev.txt"
    lock.write_text(lock.read_text().partition("used==")[0])
    done = make(project, ".venv/dev-ready")
    assert done.returncode != 0
    assert "user 1.0 requires used" in done.stderr
    assert not (project / ".venv" / "dev-ready").exists()
