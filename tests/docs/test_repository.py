"""Files of the repository: hooks, GitHub's configuration, links in documents, the package."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support import repository
from tests.support.repository import ROOT

SCHEMAS = {
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    ".github/ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    ".github/dependabot.yml": "dependabot",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/workflows/release.yml": "github-workflows",
}
"""GitHub's configuration files, and the schema of check-jsonschema that each must match."""


def test_pre_commit_runs_the_commands_of_make_lint() -> None:
    """Both use the tools in .venv, so their versions cannot differ."""
    makefile = (ROOT / "Makefile").read_text()
    [recipe] = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert re.search(r"^VENV \?= \.venv$\s+^BIN := \$\(VENV\)/bin$", makefile, flags=re.MULTILINE)
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]

    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == commands
    for hook in local["hooks"]:
        # With the names of the changed files, ruff and mypy would check only these files.
        assert hook.keys() == {"id", "name", "entry", "language", "pass_filenames"}
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)


def test_every_github_configuration_file_has_a_schema() -> None:
    paths = {str(path) for path in repository.files(".github") if path.suffix == ".yml"}
    assert paths == set(SCHEMAS)


@pytest.mark.parametrize("path", SCHEMAS)
def test_github_configuration_file_matches_its_schema(path: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    check = subprocess.run(
        [*command, f"vendor.{SCHEMAS[path]}", ROOT / path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout


def test_dependabot_checks_every_folder_with_lock_files() -> None:
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    [pip] = [update for update in updates if update["package-ecosystem"] == "pip"]
    folders = {
        f"/{path.parent}"
        for path in repository.files()
        if path.suffix == ".txt" and "requirements" in str(path)
    }
    assert set(pip["directories"]) == folders


def anchors(document: Path) -> set[str]:
    """Return the ids that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def has_target(document: Path, link: str) -> bool:
    """Tell whether the file that a link names exists, and its heading if the link names one."""
    name, _, anchor = link.partition("#")
    target = ROOT / document.parent / name if name else ROOT / document
    return target.exists() and (not anchor or anchor in anchors(target))


def test_every_link_to_a_file_has_an_existing_target() -> None:
    documents = [path for path in repository.files() if path.suffix == ".md"]
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text())
        # ../../security/ is a page of GitHub, on which vulnerabilities are reported.
        if not link.startswith(("https://", "../../security/"))
    ]
    assert len(links) > len(documents)
    assert [link for link in links if not has_target(*link)] == []
    assert not has_target(Path("README.md"), "docs/absent.md")
    assert not has_target(Path("docs/settings.md"), "../README.md#absent")


def test_every_decision_record_is_listed() -> None:
    decisions = ROOT / "docs" / "decisions"
    listed = re.findall(
        r"^\| \[(\d{4})\]\((\1-[a-z0-9-]+\.md)\)",
        (decisions / "README.md").read_text(),
        re.MULTILINE,
    )
    assert [name for _, name in listed] == sorted(path.name for path in decisions.glob("[0-9]*.md"))
    for number, name in listed:
        assert (decisions / name).read_text().startswith(f"# {number}: ")


def test_wheel_contains_only_the_service_with_types_and_data(tmp_path: Path) -> None:
    repository.copy(tmp_path / "project")
    subprocess.run(
        [sys.executable, "-m", "flit_core.wheel", "--outdir", tmp_path],
        cwd=tmp_path / "project",
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {
        "service/py.typed",
        "service/http/about/openapi.yaml",
        "service/http/about/page.html",
    }
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "message_history_server",
        "service",
    }


def test_modules_are_short_and_folders_are_small() -> None:
    """A module has at most 320 lines, and a folder at most 12 entries; except the root."""
    files = repository.files()
    long = {
        path: lines
        for path in files
        if path.suffix == ".py" and (lines := len((ROOT / path).read_text().splitlines())) > 320
    }
    entries: dict[Path, set[str]] = {}
    for path in files:
        for folder in path.parents[:-1]:
            entries.setdefault(folder, set()).add(path.relative_to(folder).parts[0])
    large = {folder: len(names) for folder, names in entries.items() if len(names) > 12}
    assert (long, large) == ({}, {})
