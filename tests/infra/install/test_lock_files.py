"""The lock files are whole: each holds what was asked for, and nothing else."""

import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.infra.tools import installed
from tests.support import stores
from tests.support.lock_files import (
    PROJECT,
    closure,
    entries,
    installed_in,
    pinned_here,
    pins,
    requirements,
    source,
    version,
)
from tests.support.repository import ROOT

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
