"""`make release-check`: builds the packages of a release, and checks all that needs no publishing.

The packages are then in dist/, and the release notes in build/release-notes.md.
.github/workflows/release.yml publishes these files.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import click

from service import __version__
from tests.infra.install.installed_service import (
    assert_returns_a_bundle,
    installation_environment,
    running_service,
)
from tests.support import repository
from tests.support.lock_files import PROJECT
from tests.support.repository import ROOT

TOOLS = ROOT / ".venv-release" / "bin" / "python"
DIST = ROOT / "dist"
NOTES = ROOT / "build" / "release-notes.md"

TIMEOUT = 280
"""Seconds for one command. The installation takes about 40."""

PIP_INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")


@dataclass(frozen=True)
class Release:
    """A dated section of CHANGELOG.md."""

    version: str
    date: datetime
    notes: str

    @classmethod
    def newest(cls, changelog: str) -> Self:
        section = re.search(
            r"^## (\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)\n(.*?)(?=^## |\Z)",
            changelog,
            re.DOTALL | re.MULTILINE,
        )
        if section is None:
            raise click.ClickException(
                "CHANGELOG.md has no section such as `## 0.1.0 (2026-11-29)`."
            )
        date = datetime.strptime(section[2], "%Y-%m-%d").replace(tzinfo=UTC)
        return cls(section[1], date, section[3].strip() + "\n")


def check_versions(changelog: str, dockerfile: str, tag: str | None) -> Release:
    """Return the newest release. Fail unless the package, the image and the tag have its version.

    A tag is only for a commit without unreleased changes.
    """
    release = Release.newest(changelog)
    versions = {
        "service/__init__.py": __version__,
        "infra/Dockerfile": image_version(dockerfile) or release.version,
        "the tag": tag.removeprefix("v") if tag else release.version,
    }
    for place, version in versions.items():
        if version != release.version:
            raise click.ClickException(
                f"CHANGELOG.md has version {release.version}, but {place} has {version}."
            )
    if tag and "\n## Unreleased\n" in changelog:
        raise click.ClickException("CHANGELOG.md has unreleased changes: give them a version.")
    return release


def image_version(dockerfile: str) -> str | None:
    """Return the version in the image's label, or `None` if only --build-arg VERSION gives one."""
    label = re.search(r'org\.opencontainers\.image\.version="?([^"\s]+)', dockerfile)
    if label is None or label[1] not in ("$VERSION", "${VERSION}"):
        return label and label[1]
    default = re.search(r"^ARG VERSION=(\S+)$", dockerfile, re.MULTILINE)
    return default and default[1]


def build(release: Release, folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it. Return their paths.

    The date of the release is the time of all files in them, so that everybody who builds a release
    gets the same bytes.
    """
    environment = {
        **installation_environment(),
        "SOURCE_DATE_EPOCH": f"{release.date.timestamp():.0f}",
    }
    shutil.rmtree(DIST, ignore_errors=True)
    command = (TOOLS, "-m", "build", "--no-isolation", ROOT)
    run(*command, "--outdir", DIST, folder=folder, environment=environment)
    run(*command, "--wheel", "--outdir", folder, folder=folder, environment=environment)
    [sdist], [wheel] = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    if (folder / wheel.name).read_bytes() != wheel.read_bytes():
        raise click.ClickException(f"{sdist.name} builds another wheel than this folder.")
    return sdist, wheel


def check_contents(release: Release, sdist: Path, wheel: Path) -> None:
    """Fail unless the packages contain what git has in service/, and else only what they must."""
    service = {str(path) for path in repository.files("service")}
    info = f"message_history_server-{release.version}.dist-info"
    metadata = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    with zipfile.ZipFile(wheel) as archive:
        check_names(
            wheel, set(archive.namelist()), service | {f"{info}/{name}" for name in metadata}
        )
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    check_names(sdist, names, service | {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"})


def check_names(package: Path, names: set[str], expected: set[str]) -> None:
    if names != expected:
        raise click.ClickException(
            f"{package.name} lacks {sorted(expected - names)} and has {sorted(names - expected)}."
        )


def check_classifiers() -> None:
    """The index refuses a package with a classifier that does not exist."""
    program = "from trove_classifiers import classifiers; print('\\n'.join(classifiers))"
    known = run(TOOLS, "-c", program).splitlines()
    unknown = set(PROJECT["classifiers"]) - set(known)
    if unknown:
        raise click.ClickException(f"pyproject.toml has unknown classifiers: {sorted(unknown)}.")


def check_installation(release: Release, wheel: Path, folder: Path) -> None:
    """Install the wheel into an empty environment, with the locked packages, and use it."""
    venv = folder / "venv"
    python, program = venv / "bin" / "python", venv / "bin" / "message-history-server"
    run(sys.executable, "-m", "venv", venv)
    run(python, *PIP_INSTALL, "--require-hashes", "-r", ROOT / "requirements" / "dev.txt")
    run(python, *PIP_INSTALL, "--no-index", wheel)
    run(python, "-m", "pip", "check", "--disable-pip-version-check")
    output = run(program, "--version", folder=folder)
    if output != f"message-history-server, version {release.version}\n":
        raise click.ClickException(f"The installed program has another version: {output}")
    with running_service([program, "serve", "--dev"], folder, installation_environment()) as url:
        assert_returns_a_bundle(url)


def run(
    *command: str | Path,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return its output. Raise `ClickException` with all output if it fails."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment or installation_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if result.returncode:
        text = " ".join(map(str, command))
        raise click.ClickException(f"{text}:\n{result.stdout}{result.stderr}")
    return result.stdout


@click.command()
@click.option("--tag", envvar="TAG", help="The tag of the release, such as v0.1.0.")
def main(*, tag: str | None) -> None:
    """Build and check the packages of the newest release in CHANGELOG.md."""
    changelog, dockerfile = ROOT / "CHANGELOG.md", ROOT / "infra" / "Dockerfile"
    release = check_versions(changelog.read_text(), dockerfile.read_text(), tag)
    click.echo(f"version {release.version}: the same everywhere")
    check_classifiers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(release, folder)
        check_contents(release, sdist, wheel)
        run(TOOLS, "-m", "twine", "check", "--strict", sdist, wheel)
        click.echo(f"{sdist.name}, {wheel.name}: complete")
        check_installation(release, wheel, folder)
        click.echo("installed wheel: returns a bundle")
    NOTES.parent.mkdir(exist_ok=True)
    NOTES.write_text(release.notes)


if __name__ == "__main__":
    main()
