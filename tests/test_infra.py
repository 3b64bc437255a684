"""What builds and deploys the service drifts from neither the code nor itself."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "lock",
    [
        "infra/requirements.lock",
        "infra/tools.lock",
        "tests/requirements.lock",
        "tests/localstack.lock",
    ],
)
def test_every_pin_has_hashes_and_no_lock_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search("^-", text, flags=re.MULTILINE)
    pins = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert pins
    assert all("--hash=sha256:" in pin for pin in pins)


def test_the_locks_hold_what_the_project_asks_for() -> None:
    runtime, everything = pinned("infra/requirements.lock"), pinned("tests/requirements.lock")
    asked = {re.split(r"[<>=\[]", name)[0] for name in PROJECT["dependencies"]}
    assert asked <= runtime.keys()
    assert runtime.items() <= everything.items()
    assert not runtime.keys() & {"moto", "pytest", "httpx"}


@pytest.fixture
def dockerfile() -> str:
    return (ROOT / "infra" / "Dockerfile").read_text()


def test_the_image_copies_what_is_there_and_let_through(dockerfile: str) -> None:
    sources = re.findall(r"^COPY (?!--from)(\S+) ", dockerfile, flags=re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert sources == ["infra/requirements.lock", "service"]
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert re.search(r"^USER [1-9]", dockerfile, flags=re.MULTILINE)
    assert 'ENTRYPOINT ["/opt/venv/bin/python", "-m", "service"]' in dockerfile


def test_ci_runs_what_people_run() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^timeout \d+ make test$", script, flags=re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
