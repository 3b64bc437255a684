"""Mutation testing of the deployment files: if a file is broken, its test has to fail.

The mutations are typical mistakes that a parser accepts: a wrong value, a missing line, a misspelt
name.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, parse

import pytest

from tests.infra.mutations.mutation import Mutation
from tests.infra.mutations.mutations import MUTATIONS
from tests.support import repository
from tests.support.repository import ROOT
from tests.support.services.process import clean_environment


def test_every_file_has_a_mutation_that_can_be_applied() -> None:
    locks = {path for path in repository.files("requirements") if path.suffix == ".txt"}
    files = {*repository.files("infra"), *locks, Path("localstack.yml"), Path(".dockerignore")}
    assert {Path(mutation.file) for mutation in MUTATIONS} == files
    for mutation in MUTATIONS:
        assert (ROOT / mutation.file).read_text().count(mutation.original) == 1, mutation
        module, _, name = mutation.node.partition("::")
        assert f"def {name}(" in (ROOT / module).read_text(), mutation


@dataclass
class Outcome:
    """The result of a pytest run."""

    code: int
    problems: dict[str, Element | None]
    """For each test, the element of the JUnit report for its failure, error or skip."""
    output: str


def run(root: Path, folder: Path, *arguments: str) -> Outcome:
    """Run pytest in `root`, also slow tests. All files that it writes are in `folder`."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "soak or not soak"]
    result = subprocess.run(
        [*command, f"--basetemp={folder / 'tmp'}", f"--junit-xml={report}", *arguments],
        cwd=root,
        env=clean_environment(CI=os.environ.get("CI", "")),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    output = result.stdout + result.stderr
    assert report.exists(), output
    problems: dict[str, Element | None] = {}
    for case in parse(report).iter("testcase"):
        name, _, _ = case.attrib["name"].partition("[")
        node = f"{case.attrib['classname'].replace('.', '/')}.py::{name}"
        elements = [element for element in case if element.tag in ("failure", "error", "skipped")]
        problems[node] = elements[0] if elements else problems.get(node)
    return Outcome(result.returncode, problems, output)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, to which the mutations are applied."""
    root = tmp_path_factory.mktemp("copy")
    repository.copy(root)
    for programs in (*ROOT.glob(".venv-*"), *ROOT.glob(".tools")):
        (root / programs.name).symlink_to(programs)
    return root


@pytest.fixture(scope="module")
def unmutated(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of all tests without a mutation."""
    nodes = {mutation.node for mutation in MUTATIONS}
    return run(copy, tmp_path_factory.mktemp("unmutated"), *nodes)


@pytest.mark.soak
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_mutation_is_detected(
    mutation: Mutation, copy: Path, unmutated: Outcome, tmp_path: Path
) -> None:
    before = unmutated.problems[mutation.node]
    if before is not None and before.tag == "skipped":
        pytest.skip(before.attrib["message"])
    assert before is None, unmutated.output
    file = copy / mutation.file
    original = file.read_text()
    file.write_text(original.replace(mutation.original, mutation.replacement))
    try:
        outcome = run(copy, tmp_path, "-x", mutation.node)
    finally:
        file.write_text(original)
    assert outcome.code == pytest.ExitCode.TESTS_FAILED, outcome.output
    problem = outcome.problems[mutation.node]
    assert problem is not None
    assert problem.tag == "failure", outcome.output
    # The test has to fail in an assertion, not with some other exception.
    assert re.match("AssertionError|assert ", problem.attrib["message"]), outcome.output
