"""The workflows: CI runs and measures the tests, and a release is published with few rights."""

import re
from typing import Any

import yaml

from tests.infra.install.release import DIST, NOTES
from tests.support.lock_files import PROJECT
from tests.support.repository import ROOT

WORKFLOWS = {path.name: path.read_text() for path in (ROOT / ".github" / "workflows").iterdir()}
CI, RELEASE = (yaml.safe_load(WORKFLOWS[name]) for name in ("ci.yml", "release.yml"))
JOBS: dict[str, Any] = RELEASE["jobs"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def test_ci_runs_the_tests_on_every_supported_python() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for target in ("test", "coverage"):
        assert re.search(rf"^timeout \d+ make {target}$", script, flags=re.MULTILINE)
    job = CI["jobs"]["test"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    versions = re.findall(r"Python :: (\d\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert versions == PYTHONS
    for name, targets in (
        ("stores", ["stores", "test-stores"]),
        ("tools", ["kubernetes-tools", "infra-tools", "test-kubernetes"]),
    ):
        job = CI["jobs"]["kubernetes" if name == "tools" else name]
        touch, *commands = [step["run"] for step in job["steps"] if "run" in step]
        assert touch == f"touch --date=@0 requirements/{name}.mk"
        assert [command.split(maxsplit=2)[2] for command in commands] == [
            f"make {target}" for target in targets
        ]
    assert CI["jobs"]["containers"]["steps"][-1]["run"].endswith(" make docker-test")


def test_ci_has_the_history_that_the_upgrade_test_needs() -> None:
    assert CI["jobs"]["test"]["steps"][0]["with"] == {"fetch-depth": 0}


def test_actions_are_pinned_to_one_commit_each() -> None:
    """A tag could be moved to other code. Dependabot updates the commit and the comment."""
    lines = re.findall(r"uses: (.*)", "\n".join(WORKFLOWS.values()))
    assert lines
    pin = re.compile(r"([\w-]+/[\w-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    pins = {line: pin.fullmatch(line) for line in lines if not line.startswith("./")}
    assert [line for line, match in pins.items() if match is None] == []
    names = [match[1] for match in pins.values() if match]
    assert len(set(names)) == len(pins)


def needs(name: str) -> set[str]:
    """Return the jobs that must succeed before this one starts."""
    direct = set(JOBS[name].get("needs", []))
    return direct.union(*map(needs, direct))


def test_nothing_is_published_before_all_checks_have_passed() -> None:
    # YAML 1.1 reads the key `on` as true.
    assert RELEASE[True] == {"push": {"tags": ["v*"]}}
    assert JOBS["checks"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in CI[True]
    [check] = [step for step in JOBS["packages"]["steps"] if "run" in step]
    assert check == {"run": "make release-check", "env": {"TAG": "${{ github.ref_name }}"}}
    assert needs("image") == {"checks", "packages"}
    assert needs("index") == {"checks", "packages", "image"}
    assert needs("github-release") == {"checks", "packages", "image", "index"}


def test_each_job_has_only_the_permissions_that_it_needs() -> None:
    assert RELEASE["permissions"] == {}
    environments = {name: job.get("environment") for name, job in JOBS.items()}
    assert environments == {
        "checks": None,
        "packages": None,
        "image": "release",
        "index": "release",
        "github-release": None,
    }
    assert {name: job["permissions"] for name, job in JOBS.items()} == {
        "checks": {"contents": "read"},
        "packages": {"contents": "read"},
        "image": {"contents": "read", "packages": "write"},
        "index": {"id-token": "write"},
        "github-release": {"contents": "write"},
    }
    # Code that a job checks out could read the token.
    assert [
        step["with"].get("persist-credentials")
        for job in JOBS.values()
        for step in job.get("steps", [])
        if step.get("uses", "").startswith("actions/checkout@")
    ] == [False, False]
    assert "secrets." not in WORKFLOWS["release.yml"]


def step_with(job: str, action: str) -> list[dict[str, Any]]:
    """Return the parameters of each step of this job that uses this action."""
    steps = [step for step in JOBS[job]["steps"] if step.get("uses", "").startswith(f"{action}@")]
    return [step.get("with", {}) for step in steps]


def test_image_is_built_for_two_platforms_with_its_sbom_and_provenance() -> None:
    [build] = step_with("image", "docker/build-push-action")
    assert (ROOT / build["file"]).is_file()
    assert build["platforms"] == "linux/amd64,linux/arm64"
    assert (build["sbom"], build["provenance"], build["push"]) == (True, "mode=max", True)
    assert build["build-args"] == "VERSION=${{ steps.metadata.outputs.version }}"
    assert build["labels"] == "${{ steps.metadata.outputs.labels }}"


def test_release_publishes_the_checked_packages_and_notes() -> None:
    uploaded = {
        upload["name"]: upload for upload in step_with("packages", "actions/upload-artifact")
    }
    assert uploaded["packages"]["path"] == f"{DIST.relative_to(ROOT)}/"
    assert uploaded["notes"]["path"] == str(NOTES.relative_to(ROOT))
    packages = {"name": "packages", "path": "dist"}
    assert step_with("index", "actions/download-artifact") == [packages]
    assert step_with("github-release", "actions/download-artifact") == [packages, {"name": "notes"}]
    [create] = [step["run"] for step in JOBS["github-release"]["steps"] if "run" in step]
    assert "dist/*" in create
    assert f"--notes-file {NOTES.name}" in create
