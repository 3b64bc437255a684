"""The lock files are complete: each pins exactly the required packages and their dependencies."""

import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.infra.tools import find_or_skip
from tests.support import stores
from tests.support.lock_files import (
    PROJECT,
    entries,
    installed_in,
    pinned_versions,
    pins,
    requirements,
    source_requirements,
    version,
    versions_with_dependencies,
)
from tests.support.repository import ROOT

EXTRAS = PROJECT["optional-dependencies"]
PURELIB = Path(sysconfig.get_path("purelib"))

TEST = [requirement for requirement in EXTRAS["test"] if not requirement.startswith("message-")]
REQUIRED = {
    "requirements/service.txt": PROJECT["dependencies"],
    "requirements/dev.txt": [*PROJECT["dependencies"], *EXTRAS["dev"]],
    "requirements/otel.txt": [*PROJECT["dependencies"], *EXTRAS["otel"]],
    "requirements/test.txt": [
        *PROJECT["dependencies"],
        *EXTRAS["dev"],
        *EXTRAS["examples"],
        *EXTRAS["otel"],
        *TEST,
    ],
    "examples/requirements.txt": EXTRAS["examples"],
    "requirements/infra-tools.txt": source_requirements("requirements/direct/infra-tools.in"),
    "requirements/localstack.txt": source_requirements("requirements/direct/localstack.in"),
    "requirements/ministack.txt": source_requirements("requirements/direct/ministack.in"),
    "requirements/release-tools.txt": source_requirements("requirements/direct/release-tools.in"),
}
"""Each lock file, and the requirements that it was made from."""

ENVIRONMENTS = {
    "requirements/infra-tools.txt": ("infra-tools", ".venv-infra"),
    "requirements/localstack.txt": ("localstack", ".venv-localstack"),
    "requirements/ministack.txt": ("ministack", ".venv-ministack"),
    "requirements/release-tools.txt": ("release-tools", ".venv-release"),
}
"""The lock files with their own virtual environment: the make target, and the folder."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {"linux": "Linux", "darwin": "Darwin"}


def site_packages(lock: str) -> Path:
    """Return the folder into which a lock file is installed. If it is missing, skip the test."""
    if lock not in ENVIRONMENTS:
        return PURELIB
    target, folder = ENVIRONMENTS[lock]
    site = ROOT / folder / PURELIB.relative_to(sys.prefix)

    def find() -> Path:
        if not site.is_dir():
            raise stores.NotInstalled(f"{folder} is missing: run `make {target}`")
        return site

    return find_or_skip(find)


@pytest.mark.parametrize("lock", REQUIRED)
def test_every_pin_has_hashes_and_no_lock_file_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search("^-", text, flags=re.MULTILINE)
    name, hashes = r"[\w.-]+(\[[\w, -]+\])?", r"( \\\n    --hash=sha256:[0-9a-f]{64})+"
    hashed = re.compile(rf"{name}==\S+( ; [^\\\n]+)?{hashes}\n")
    assert [entry for entry in entries(lock) if not hashed.fullmatch(entry)] == []


@pytest.mark.parametrize("lock", REQUIRED)
def test_lock_file_contains_exactly_the_required_packages(lock: str) -> None:
    assert pinned_versions(lock) == versions_with_dependencies(REQUIRED[lock], site_packages(lock))


@pytest.mark.parametrize("lock", REQUIRED)
def test_every_requirement_of_a_locked_package_is_pinned(lock: str) -> None:
    """Check each supported Python and platform, and the requirements of extras too.

    The project calls pip with --no-deps, so pip does not notice a missing package.
    """
    installed = installed_in(site_packages(lock))
    missing = []
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
            missing += [
                f"{name} {version(pin)} needs {requirement} (Python {python}, {platform})"
                for name, pin in locked.items()
                # A package that is pinned for another Python or platform is not installed here.
                if name in installed and installed[name].version == version(pin)
                for requirement in requirements(installed[name], pin.extras, environment)
                if not is_satisfied(requirement, locked)
            ]
    assert missing == []


def is_satisfied(requirement: Requirement, locked: Mapping[NormalizedName, Requirement]) -> bool:
    pin = locked.get(canonicalize_name(requirement.name))
    return (
        pin is not None
        and requirement.specifier.contains(version(pin), prereleases=True)
        and requirement.extras <= pin.extras
    )


def test_lock_files_agree() -> None:
    """The image, `make run` and the examples install the same versions as the tests."""

    def pinned(lock: str) -> dict[str, str]:
        """Return version and hashes by name. Extras and markers may differ between lock files."""
        return {
            Requirement(pin).name: f"{Requirement(pin).specifier}{hashes}"
            for pin, _, hashes in (entry.partition("\\") for entry in entries(lock))
        }

    service, dev, otel, test = map(pinned, list(REQUIRED)[:4])
    assert service.items() <= dev.items() <= test.items()
    assert service.items() <= otel.items() <= test.items()
    assert pinned("examples/requirements.txt").items() <= test.items()


def test_example_requirements_match_the_examples_extra() -> None:
    assert source_requirements("examples/requirements.in") == EXTRAS["examples"]


def test_lock_file_of_the_examples_has_no_extras() -> None:
    """Older versions of pip cannot match a requirement with extras to a pin."""
    assert [pin.name for pin in pins("examples/requirements.txt") if pin.extras] == []
    assert pinned_versions("examples/requirements.txt") == versions_with_dependencies(
        EXTRAS["examples"], PURELIB
    )
