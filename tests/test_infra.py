"""What builds and deploys the service drifts from neither the code nor itself."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.background import CLEANUP_TIMEOUT
from service.settings import Settings
from tests.clients import until
from tests.conftest import aws_environment, find_tool, installed
from tests.stores import Store

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def entries(lock: str) -> list[str]:
    """Of each package all that is pinned: version, marker, hashes. It may have one per Python."""
    return re.split(r"^(?=[a-z])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]


def wanted_here(lock: str) -> dict[str, str]:
    """The versions that this lock installs on this machine."""
    pins = [Requirement(entry.partition("\\")[0]) for entry in entries(lock)]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def closure(asked: Iterable[str], site: Path) -> dict[str, str]:
    """The versions, in this folder of packages, of what these need, they themselves included."""
    there = {canonicalize_name(found.name): found for found in distributions(path=[str(site)])}
    queue = [Requirement(text) for text in asked]
    found: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        found[name] = there[name].version
        for extra in {"", *wanted.extras}:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            needed = [Requirement(text) for text in there[name].requires or []]
            queue += [
                one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})
            ]
    return found


@pytest.mark.parametrize(
    "lock",
    [
        "infra/requirements.lock",
        "infra/tools.lock",
        "tests/requirements.lock",
        "tests/localstack.lock",
        "tests/ministack.lock",
    ],
)
def test_every_pin_has_hashes_and_no_lock_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search("^-", text, flags=re.MULTILINE)
    assert entries(lock)
    hashed = re.compile(r"\S+==\S+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n")
    assert [entry for entry in entries(lock) if not hashed.fullmatch(entry)] == []


def test_the_image_installs_what_the_service_needs_and_no_more() -> None:
    """And of that, what the tests ran with."""
    site = Path(sysconfig.get_path("purelib"))
    assert wanted_here("infra/requirements.lock") == closure(PROJECT["dependencies"], site)
    assert set(entries("infra/requirements.lock")) <= set(entries("tests/requirements.lock"))


def test_the_tools_are_those_that_are_pinned() -> None:
    [asked] = re.findall("^TOOLS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    here = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    site = installed(lambda: find_tool("python")).parents[1] / here
    assert wanted_here("infra/tools.lock") == closure(shlex.split(asked), site)


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
    assert "pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock\n" in dockerfile
    assert 'ENTRYPOINT ["/opt/venv/bin/python", "-m", "service"]' in dockerfile


def test_the_image_leaves_as_the_service_does(dockerfile: str) -> None:
    """SIGTERM drains it; what it says of that is what the settings are."""
    assert "STOPSIGNAL SIGTERM" in dockerfile
    fields = Settings.model_fields
    needed = fields["drain_delay"].default + fields["drain_timeout"].default
    found = re.search(r"Give it (\d+) s before it is killed", dockerfile)
    assert found is not None
    assert needed + CLEANUP_TIMEOUT < int(found[1])
    assert "/healthz" in dockerfile


@pytest.mark.soak
def test_the_image_is_installed_as_written_and_writes_nothing(
    dockerfile: str, tmp_path: Path, store: Store, s3: Any
) -> None:
    """Its steps, in a virtual environment and a folder in the place of /opt/venv and /app."""
    venv, app = tmp_path / "venv", tmp_path / "app"
    lock = str(ROOT / "infra" / "requirements.lock")
    steps = re.findall(r"^(?:RUN| &&) (.*?)(?: \\)?$", dockerfile, re.MULTILINE)
    for step in steps:
        here = step.replace("/opt/venv", str(venv)).replace("/tmp/requirements.lock", lock)
        command = [sys.executable if word == "python" else word for word in here.split()]
        subprocess.run(command, check=True, timeout=300)
    shutil.copytree(ROOT / "service", app / "service", ignore=shutil.ignore_patterns("__pycache__"))
    before = sorted(app.rglob("*"))
    bucket = f"history-{uuid4()}"
    s3.create_bucket(Bucket=bucket)
    probe = json.loads(re.search(r"^HEALTHCHECK .*CMD (.*)$", dockerfile, re.MULTILINE)[1])  # type: ignore[index]
    with aws_environment(store) as variables, socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
        free.close()
        environment = {**variables, "HISTORY_BUCKET": bucket, "HISTORY_PORT": port}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        entry = [str(venv / "bin" / "python"), "-m", "service"]
        with subprocess.Popen(entry, cwd=app, env=environment) as process:
            check = [entry[0], *probe[1:]]
            healthy = partial(subprocess.run, check, env=environment, stderr=subprocess.DEVNULL)
            until(lambda: healthy(check=False).returncode == 0, seconds=20)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert sorted(app.rglob("*")) == before


def test_ci_runs_what_people_run() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^timeout \d+ make test$", script, flags=re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
