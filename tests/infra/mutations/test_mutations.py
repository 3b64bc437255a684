"""Each file that runs the service somewhere is held by a test: break it, and that one fails.

The mistakes are those that people make, and that a parser takes: a value that no longer fits, a
line left out, a name misspelt.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, parse

import pytest

from tests.infra.mutations.mutations import MUTATIONS, Mutation
from tests.infra.tools import INFRA_TOOLS
from tests.support import repository
from tests.support.repository import ROOT
from tests.support.services.process import clean_environment


def test_every_file_is_broken_once() -> None:
    """At a place that is there, and for a test that is."""
    locks = {path for path in repository.files("requirements") if path.suffix == ".txt"}
    there = {*repository.files("infra"), *locks, Path("localstack.yml"), Path(".dockerignore")}
    assert {Path(one.file) for one in MUTATIONS} == there
    for one in MUTATIONS:
        assert (ROOT / one.file).read_text().count(one.right) == 1, one
        module, _, name = one.node.partition("::")
        assert f"def {name}(" in (ROOT / module).read_text(), one


@dataclass
class Outcome:
    """How pytest ended, and for each test what was wrong with it: an element of its report."""

    code: int
    wrong: dict[str, Element | None]
    output: str


def run(root: Path, folder: Path, *arguments: str) -> Outcome:
    """Run pytest there; what it leaves is left in the folder."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, f"--basetemp={folder / 'tmp'}", f"--junit-xml={report}", *arguments],
        cwd=root,
        env=clean_environment(CI=os.environ.get("CI", "")),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert report.exists(), output
    wrong: dict[str, Element | None] = {}
    for case in parse(report).iter("testcase"):
        name, _, _ = case.attrib["name"].partition("[")
        node = f"{case.attrib['classname'].replace('.', '/')}.py::{name}"
        found = [one for one in case if one.tag in ("failure", "error", "skipped")]
        wrong[node] = found[0] if found else wrong.get(node)
    return Outcome(ended.returncode, wrong, output)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in another folder, to be broken there."""
    root = tmp_path_factory.mktemp("copy")
    repository.copy(root)
    if INFRA_TOOLS.exists():
        (root / INFRA_TOOLS.parent.name).symlink_to(INFRA_TOOLS.parent)
    return root


@pytest.fixture(scope="module")
def whole(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What all of the tests say while nothing is broken."""
    return run(copy, tmp_path_factory.mktemp("whole"), *{one.node for one in MUTATIONS})


@pytest.mark.soak
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mistake_is_noticed(
    mutation: Mutation, copy: Path, whole: Outcome, tmp_path: Path
) -> None:
    before = whole.wrong[mutation.node]
    if before is not None and before.tag == "skipped":
        pytest.skip(before.attrib["message"])
    assert before is None, whole.output
    file = copy / mutation.file
    right = file.read_text()
    file.write_text(right.replace(mutation.right, mutation.wrong))
    try:
        outcome = run(copy, tmp_path, "-x", mutation.node)
    finally:
        file.write_text(right)
    assert outcome.code == pytest.ExitCode.TESTS_FAILED, outcome.output
    found = outcome.wrong[mutation.node]
    assert found is not None
    assert found.tag == "failure", outcome.output
    # By what it asserts, not because it fell over.
    assert re.match("AssertionError|assert ", found.attrib["message"]), outcome.output
