"""The Makefile installs the versions that the lock files pin."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.lock_files import add_release, installed_in
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
    """A project with this Makefile and with lock files that pin older releases.

    The combination that once broke the installation: one package requires another with an extra,
    and the index has a newer release of the other package.
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


def create_environment(project: Path) -> None:
    """Create the virtual environment with a copy of pip, which is faster than `make` does it."""
    environment = project / ".venv"
    venv.create(environment, symlinks=True)
    for folder in PURELIB.glob("pip*"):
        shutil.copytree(folder, environment / folder.relative_to(sys.prefix))


def make(project: Path, target: str) -> subprocess.CompletedProcess[str]:
    index = project.parent / "index"
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PYTHON": sys.executable}
    variables["PIP_REQUIRE_VIRTUALENV"] = "1"  # Never install anything into the system's Python.
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
    return {name: package.version for name, package in installed_in(site).items() if name != "pip"}


@only_ci
def test_make_installs_the_pinned_versions_despite_newer_releases(project: Path) -> None:
    """Uses the pip of this environment. `make install-test` tests other versions of pip."""
    create_environment(project)
    result = make(project, ".venv/dev-ready")
    assert result.returncode == 0, result.stderr
    dev = {"used": "1.0", "user": "1.0", "project": "1"}
    assert {name: versions(project)[name] for name in dev} == dev
    assert "plugin" not in versions(project)
    result = make(project, ".venv/test-ready")
    assert result.returncode == 0, result.stderr
    assert versions(project)["plugin"] == "1.0"


@only_ci
def test_make_replaces_an_environment_whose_creation_was_interrupted(project: Path) -> None:
    """Its Python is the system's, and its pip would install there."""
    create_environment(project)
    (project / ".venv" / "pyvenv.cfg").unlink()
    result = make(project, ".venv/dev-ready")
    assert result.returncode == 0, result.stderr
    assert (project / ".venv" / "pyvenv.cfg").exists()
    assert versions(project)["used"] == "1.0"


@only_ci
def test_make_fails_with_an_incomplete_lock_file(project: Path) -> None:
    create_environment(project)
    lock = project / "requirements" / "dev.txt"
    lock.write_text(lock.read_text().partition("used==")[0])
    result = make(project, ".venv/dev-ready")
    assert result.returncode != 0
    assert "user 1.0 requires used" in result.stderr
    assert not (project / ".venv" / "dev-ready").exists()
