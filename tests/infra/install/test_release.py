"""`make release-check` compares the versions, and finds what is wrong with the packages."""

import io
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from service import __version__
from tests.infra.install.release import Release, check_contents, check_versions, image_version
from tests.support import repository

NEWEST = f"## {__version__} (2026-11-29)\n\nThe newest version.\n\n### API\n\n- A change.\n\n"
CHANGELOG = f"# Changelog\n\n{NEWEST}## 0.0.1 (2026-01-02)\n\nThe first version.\n"
UNRELEASED = CHANGELOG.replace("\n\n", "\n\n## Unreleased\n\n- Another change.\n\n", 1)
LABEL = 'LABEL org.opencontainers.image.title="a title" \\\n      org.opencontainers.image.version='


def test_newest_release_is_the_first_section_with_a_date() -> None:
    for changelog in (CHANGELOG, UNRELEASED):
        release = Release.newest(changelog)
        assert (release.version, release.date) == (__version__, datetime(2026, 11, 29, tzinfo=UTC))
        assert release.notes == "The newest version.\n\n### API\n\n- A change.\n"
    assert Release.newest("\n## 1.2.3 (2026-01-02)\n\nThe only version.\n").notes == (
        "The only version.\n"
    )
    with pytest.raises(click.ClickException, match="has no section such as"):
        Release.newest("# Changelog\n\n## Unreleased\n\n- A change.\n")


@pytest.mark.parametrize(
    ("dockerfile", "version"),
    [
        ("FROM scratch\n", None),
        (f'ARG VERSION\n{LABEL}"${{VERSION}}"\n', None),
        (f'ARG VERSION=1.2.3\n{LABEL}"${{VERSION}}"\n', "1.2.3"),
        (f"ARG VERSION=1.2.3\n{LABEL}$VERSION\n", "1.2.3"),
        (f'{LABEL}"1.2.3"\n', "1.2.3"),
    ],
)
def test_version_of_the_image_is_that_of_its_label(dockerfile: str, version: str | None) -> None:
    assert image_version(dockerfile) == version


def test_all_versions_must_be_the_same() -> None:
    for tag in (None, f"v{__version__}"):
        assert check_versions(CHANGELOG, f'{LABEL}"{__version__}"\n', tag).version == __version__
    assert check_versions(UNRELEASED, "", None).version == __version__
    for arguments, place in {
        (CHANGELOG.replace(__version__, "9.9.9"), "", None): "service/__init__.py",
        (CHANGELOG, f'{LABEL}"9.9.9"\n', None): "infra/Dockerfile",
        (CHANGELOG, "", "v9.9.9"): "the tag",
        (UNRELEASED, "", f"v{__version__}"): "unreleased changes",
    }.items():
        with pytest.raises(click.ClickException, match=place):
            check_versions(*arguments)


def write_packages(folder: Path, files: list[str], metadata: list[str]) -> tuple[Path, Path]:
    """Write an sdist and a wheel with empty files of these names."""
    name = f"message_history_server-{__version__}"
    sdist, wheel = folder / f"{name}.tar.gz", folder / f"{name}-py3-none-any.whl"
    with tarfile.open(sdist, "w:gz") as tar:
        for path in (*files, "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"):
            tar.addfile(tarfile.TarInfo(f"{name}/{path}"), io.BytesIO())
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in (*files, *(f"{name}.dist-info/{part}" for part in metadata)):
            archive.writestr(path, "")
    return sdist, wheel


def test_missing_and_additional_files_are_found(tmp_path: Path) -> None:
    release = Release.newest(CHANGELOG)
    files = [str(path) for path in repository.files("service")]
    metadata = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"]
    check_contents(release, *write_packages(tmp_path, files, metadata))
    files.remove("service/http/about/openapi.yaml")
    with pytest.raises(click.ClickException, match=r"lacks .*/openapi.yaml'\] and has \[\]"):
        check_contents(release, *write_packages(tmp_path, files, metadata))
    files += ["service/http/about/openapi.yaml", "service/notes.txt"]
    with pytest.raises(click.ClickException, match=r"lacks \[\] and has \['service/notes.txt'\]"):
        check_contents(release, *write_packages(tmp_path, files, metadata))
