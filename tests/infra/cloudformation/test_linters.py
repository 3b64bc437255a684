"""cfn-lint and checkov report no problems in the templates."""

import json
import re
from pathlib import Path

import pytest

from tests.infra.cloudformation.templates import FOLDER, TEMPLATES, Template
from tests.infra.tools import run_tool


@pytest.mark.parametrize("name", TEMPLATES)
def test_cfn_lint_reports_no_problems(name: str) -> None:
    result = run_tool("cfn-lint", FOLDER / f"{name}.yaml")
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_checkov_fails_no_check_and_every_skip_has_a_reason() -> None:
    options = ("--framework", "cloudformation", "--skip-download", "--output", "json")
    result = run_tool("checkov", *options, "--directory", FOLDER)
    results = json.loads(result.stdout)["results"]
    assert not results["parsing_errors"]
    failed = [
        (check["check_id"], check["check_name"], check["resource"])
        for check in results["failed_checks"]
    ]
    assert failed == []
    assert {Path(check["file_path"]).stem for check in results["passed_checks"]} == set(TEMPLATES)
    # Every skip comment has a reason and skips a check that would otherwise fail.
    comments = re.findall(
        r"# checkov:skip=(\w+):(\w.{20,})$",
        "".join(Template(name).text for name in TEMPLATES),
        flags=re.MULTILINE,
    )
    skipped = sorted(check["check_id"] for check in results["skipped_checks"])
    assert sorted(name for name, _ in comments) == skipped
