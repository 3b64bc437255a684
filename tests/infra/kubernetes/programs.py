"""Helm and kustomize. Tests that use them are skipped if `make kubernetes-tools` did not run."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.infra.kubernetes.chart import CHART
from tests.infra.kubernetes.manifests import Object
from tests.infra.tools import run_tool


def example_values() -> Any:
    """Return the values in the chart's README."""
    page = (CHART / "README.md").read_text()
    [text] = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return yaml.safe_load(text)


def helm(
    folder: Path, command: str, *arguments: object, program: str = "helm", **values: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command of Helm for a release of the chart, with these values in a file.

    `helm` is version 4, and `helm3` is version 3.
    """
    file = folder / "values.yaml"
    file.write_text(yaml.dump(values))
    return run_tool(program, command, "history", CHART, "--values", file, *arguments)


def render(folder: Path, **values: Any) -> dict[str, Object]:
    """Return the objects of the chart, by kind."""
    result = helm(folder, "template", **values)
    assert (result.returncode, result.stderr) == (0, "")
    return by_kind(result.stdout)


def kustomize(folder: Path) -> dict[str, Object]:
    """Return the objects that kustomize builds, by kind, without the hash in a name."""
    result = run_tool("kustomize", "build", folder)
    assert (result.returncode, result.stderr) == (0, "")
    return by_kind(re.sub(r"\bhistory-[0-9a-z]{10}$", "history", result.stdout, flags=re.MULTILINE))


def by_kind(text: str) -> dict[str, Object]:
    objects = list(yaml.safe_load_all(text))
    kinds = {item["kind"]: item for item in objects}
    assert len(kinds) == len(objects)
    return kinds
