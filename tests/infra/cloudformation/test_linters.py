"""cfn-lint and checkov find nothing in the templates."""

import json
import re
from pathlib import Path

import pytest

from tests.infra.cloudformation.templates import FOLDER, TEMPLATES, Template
from tests.infra.tools import run_tool


@pytest.mark.parametrize("name", TEMPLATES)
def test_cfn_lint_finds_nothing(name: str) -> None:
    linted = run_tool("cfn-lint", FOLDER / f"{name}.yaml")
    assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout + linted.stderr


def test_checkov_finds_nothing_but_what_is_excused() -> None:
    options = ("--framework", "cloudformation", "--skip-download", "--output", "json")
    scanned = run_tool("checkov", *options, "--directory", FOLDER)
    results = json.loads(scanned.stdout)["results"]
    assert not results["parsing_errors"]
    failed = [
        (found["check_id"], found["check_name"], found["resource"])
        for found in results["failed_checks"]
    ]
    assert failed == []
    assert {Path(found["file_path"]).stem for found in results["passed_checks"]} == set(TEMPLATES)
    # An exception is there with its reason, and only where there is something to except.
    written = re.findall(
        r"# checkov:skip=(\w+):(\w.{20,})$",
        "".join(Template(name).text for name in TEMPLATES),
        flags=re.MULTILINE,
    )
    skipped = sorted(found["check_id"] for found in results["skipped_checks"])
    assert sorted(name for name, _ in written) == skipped
