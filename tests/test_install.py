"""Installation depends on the locks alone: not on the date, nor on pip's version."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests import stores
from tests.conftest import installed, only_ci
from tests.locks import (
    PROJECT,
    ROOT,
    add_release,
    closure,
    entries,
    installed_in,
    pinned_here,
    pins,
    requirements,
    source,
    version,
)

EXTRAS = PROJECT["optional-dependencies"]
PURELIB = Path(sysconfig.get_path("purelib"))

TEST = [requirement for requirement in EXTRAS["test"] if not requirement.startswith("message-")]
ASKED = {
    "requirements/service.txt": PROJECT["dependencies"],
    "requirements/dev.txt": [*PROJECT["dependencies"], *EXTRAS["dev"]],
    "requirements/test.txt": [
        *PROJECT["dependencies"],
        *EXTRAS["dev"],
        *EXTRAS["examples"],
        *TEST,
    ],
    "examples/requirements.txt": EXTRAS["examples"],
    "requirements/infra-tools.txt": source("requirements/infra-tools.in"),
    "requirements/localstack.txt": source("requirements/localstack.in"),
    "requirements/ministack.txt": source("requirements/ministack.in"),
}
"""Each lock, and the requirements that it was made from."""

ENVIRONMENTS = {
    "requirements/infra-tools.txt": ("infra-tools", ".venv-infra"),
    "requirements/localstack.txt": ("localstack", ".venv-localstack"),
    "requirements/ministack.txt": ("ministack", ".venv-ministack"),
}
"""The locks with a virtual environment of their own: the make target, and the folder."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {"linux": "Linux", "darwin": "Darwin"}


def site_of(lock: str) -> Path:
    """Return the folder into which this lock is installed; without it, skip the test."""
    if lock not in ENVIRONMENTS:
        return PURELIB
    target, folder = ENVIRONMENTS[lock]
    site = ROOT / folder / PURELIB.relative_to(sys.prefix)

    def find() -> Path:
        if not site.is_dir():
            raise stores.NotInstalled(f"{folder} is missing: run `make {target}`")
        return site

    return installed(find)


@pytest.mark.parametrize("lock", ASKED)
def test_every_pin_has_hashes_and_no_lock_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search("^-", text, flags=re.MULTILINE)
    name, hashes = r"[\w.-]+(\[[\w, -]+\])?", r"( \\\n    --hash=sha256:[0-9a-f]{64})+"
    hashed = re.compile(rf"{name}==\S+( ; [^\\\n]+)?{hashes}\n")
    assert [entry for entry in entries(lock) if not hashed.fullmatch(entry)] == []


@pytest.mark.parametrize("lock", ASKED)
def test_a_lock_holds_what_was_asked_for_and_nothing_else(lock: str) -> None:
    assert pinned_here(lock) == closure(ASKED[lock], site_of(lock))


@pytest.mark.parametrize("lock", ASKED)
def test_every_requirement_of_a_locked_package_is_pinned(lock: str) -> None:
    """Including the requirements of extras, on each supported Python and platform.

    pip is told to resolve nothing, so nothing else would notice a missing package.
    """
    there = installed_in(site_of(lock))
    unmet = []
    for python in PYTHONS:
        for platform, system in PLATFORMS.items():
            environment = {
                "python_version": python,
                "python_full_version": f"{python}.99",
                "sys_platform": platform,
                "platform_system": system,
            }
            locked = {
                canonicalize_name(pin.name): pin
                for pin in pins(lock)
                if pin.marker is None or pin.marker.evaluate(environment)
            }
            unmet += [
                f"{name} {version(pin)} needs {needed} (Python {python}, {platform})"
                for name, pin in locked.items()
                # A package that is pinned for another Python or platform is not installed here.
                if name in there and there[name].version == version(pin)
                for needed in requirements(there[name], pin.extras, environment)
                if not satisfied(needed, locked)
            ]
    assert unmet == []


def satisfied(needed: Requirement, locked: Mapping[NormalizedName, Requirement]) -> bool:
    pin = locked.get(canonicalize_name(needed.name))
    return (
        pin is not None
        and needed.specifier.contains(version(pin), prereleases=True)
        and needed.extras <= pin.extras
    )


def test_the_locks_agree() -> None:
    """The image, `make run` and the examples install exactly what the tests ran with."""

    def pinned(lock: str) -> dict[str, str]:
        """Version and hashes by name. A larger lock may have more extras and simpler markers."""
        return {
            Requirement(head).name: f"{Requirement(head).specifier}{hashes}"
            for head, _, hashes in (entry.partition("\\") for entry in entries(lock))
        }

    service, dev, test = map(pinned, list(ASKED)[:3])
    assert service.items() <= dev.items() <= test.items()
    assert pinned("examples/requirements.txt").items() <= test.items()


def test_the_examples_ask_for_what_the_extra_asks_for() -> None:
    assert source("examples/requirements.in") == EXTRAS["examples"]


def test_users_install_the_examples_without_options() -> None:
    """Their lock has no extras, which older versions of pip cannot match to a pin."""
    assert [pin.name for pin in pins("examples/requirements.txt") if pin.extras] == []
    assert pinned_here("examples/requirements.txt") == closure(EXTRAS["examples"], PURELIB)


# -- The Makefile's own commands, with a small package index ---------------------------------------

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
