"""The lock files: what they pin, and what the installed packages require."""

import hashlib
import re
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def entries(lock: str) -> list[str]:
    """Return the text of each pin: name, version, marker and hashes."""
    return re.split(r"^(?=[a-z])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]


def pins(lock: str) -> list[Requirement]:
    return [Requirement(entry.partition("\\")[0]) for entry in entries(lock)]


def version(pin: Requirement) -> str:
    return str(pin.specifier).removeprefix("==")


def pinned_versions(lock: str) -> dict[str, str]:
    """Return the versions that this lock installs on this machine, by name."""
    return {pin.name: version(pin) for pin in pins(lock) if applies(pin)}


def source_requirements(path: str) -> list[str]:
    """Return the requirements in a file from which a lock is made."""
    lines = (ROOT / path).read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def installed_in(site: Path) -> dict[str, Distribution]:
    """Return the packages in a site-packages folder, by name."""
    return {canonicalize_name(package.name): package for package in distributions(path=[str(site)])}


def applies(requirement: Requirement, environment: Mapping[str, str] | None = None) -> bool:
    """Return whether a requirement's marker is true in this environment, by default the current."""
    return requirement.marker is None or requirement.marker.evaluate(dict(environment or {}))


def requirements(
    package: Distribution, extras: Iterable[str], environment: Mapping[str, str]
) -> Iterator[Requirement]:
    """Yield what an installed package requires with these extras, in this environment."""
    for requirement in _parse(tuple(package.requires or ())):
        if any(applies(requirement, {**environment, "extra": extra}) for extra in {"", *extras}):
            yield requirement


@cache
def _parse(texts: tuple[str, ...]) -> list[Requirement]:
    return [Requirement(text) for text in texts]


def versions_with_dependencies(roots: Iterable[str], site: Path) -> dict[str, str]:
    """Return the installed versions of these requirements and of everything that they need."""
    installed = installed_in(site)
    queue = [Requirement(text) for text in roots]
    versions: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        versions[name] = installed[name].version
        for extra in {"", *requirement.extras}:
            if (name, extra) not in done:
                done.add((name, extra))
                queue += requirements(installed[name], [extra], {})
    return versions


def add_release(index: Path, name: str, release: str, *requires: str) -> str:
    """Add a wheel to an index. Return the line that pins it."""
    wheel = index / f"{name}-{release}-py3-none-any.whl"
    info = f"{name}-{release}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\nProvides-Extra: toml\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}=={release} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
