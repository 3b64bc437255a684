"""CI runs `make test`, the same command that developers run."""

import re

import yaml

from tests.support.repository import ROOT


def test_ci_runs_make_test_on_every_supported_python() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^timeout \d+ make test$", script, flags=re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    commands = [step["run"] for step in workflow["jobs"]["stores"]["steps"] if "run" in step]
    assert [command.split(maxsplit=2)[2] for command in commands] == [
        "make stores",
        "make test-stores",
    ]
