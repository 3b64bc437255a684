"""The Dockerfile: the files it copies, its build steps, and how the service runs and stops.

These tests need no engine. Those in test_image.py do.
"""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service import __version__
from service.bundles.background import CLOSE_TIMEOUT
from service.settings import Settings
from tests.support.polling import wait_until
from tests.support.repository import ROOT
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket


@pytest.fixture
def dockerfile() -> str:
    return (ROOT / "infra" / "Dockerfile").read_text()


def test_image_copies_existing_files_that_dockerignore_allows(dockerfile: str) -> None:
    sources = re.findall(r"^COPY (?!--from)(\S+) ", dockerfile, flags=re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    locks = "requirements/${REQUIREMENTS}.txt"
    assert sources == [locks, "requirements/dev.txt", "service", "service"]
    assert "\nARG REQUIREMENTS=service\n" in dockerfile
    for lock in ("service", "otel"):
        sources.append(locks.replace("${REQUIREMENTS}", lock))
    for source in sources[1:]:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert re.search(r"^USER [1-9]", dockerfile, flags=re.MULTILINE)
    assert "install --no-cache-dir --no-deps --require-hashes -r /tmp/service.txt" in dockerfile
    assert 'ENTRYPOINT ["/opt/venv/bin/python", "-m", "service"]' in dockerfile


def test_default_image_has_no_embedded_store_and_the_version_of_the_service(
    dockerfile: str,
) -> None:
    *_, default = dockerfile.split("\nFROM ")
    assert re.findall("^COPY --from=(\\S+)", default, re.MULTILINE) == ["dependencies"]
    assert f"\nARG VERSION={__version__}\n" in dockerfile
    assert 'org.opencontainers.image.version="${VERSION}"' in dockerfile


def test_documented_targets_exist(dockerfile: str) -> None:
    page = (ROOT / "infra" / "README.md").read_text()
    targets = re.findall(r"^docker build -f infra/Dockerfile --target (\S+) ", page, re.MULTILINE)
    assert {*targets} == {*re.findall(r"^FROM .* AS (dev)$", dockerfile, re.MULTILINE)} == {"dev"}


def test_image_gives_the_service_time_for_a_graceful_shutdown(dockerfile: str) -> None:
    assert "STOPSIGNAL SIGTERM" in dockerfile
    fields = Settings.model_fields
    drain_time = fields["drain_delay"].default + fields["drain_timeout"].default
    kill_timeout = re.search(r"Give it (\d+) s before it is killed", dockerfile)
    assert kill_timeout is not None
    assert drain_time + CLOSE_TIMEOUT < int(kill_timeout[1])
    assert "/healthz" in dockerfile


@pytest.mark.soak
def test_image_build_steps_work_and_the_service_writes_no_files(
    dockerfile: str, tmp_path: Path, store: Store, s3: Any
) -> None:
    """Run the steps with a virtual environment for /opt/venv and a temporary folder for /app."""
    venv, app = tmp_path / "venv", tmp_path / "app"
    locks = str(ROOT / "requirements")
    steps = re.findall(r"^(?:RUN| &&) (.*?)(?: \\)?$", dockerfile, re.MULTILINE)
    for step in steps:
        local_step = step.replace("/tmp/", f"{locks}/").replace("/opt/venv", str(venv))
        command = [sys.executable if word == "python" else word for word in shlex.split(local_step)]
        subprocess.run(command, check=True, timeout=300)
    shutil.copytree(ROOT / "service", app / "service", ignore=shutil.ignore_patterns("__pycache__"))
    before = sorted(app.rglob("*"))
    bucket = new_bucket(s3)
    probe = json.loads(re.search(r"^HEALTHCHECK .*CMD (.*)$", dockerfile, re.MULTILINE)[1])  # type: ignore[index]
    with aws_environment(store) as variables, socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        listener.close()
        environment = {**variables, "HISTORY_BUCKET": bucket, "HISTORY_PORT": port}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [str(venv / "bin" / "python"), "-m", "service"]
        with subprocess.Popen(command, cwd=app, env=environment) as process:
            health_check = [command[0], *probe[1:]]
            run_health_check = partial(
                subprocess.run, health_check, env=environment, stderr=subprocess.DEVNULL
            )
            wait_until(lambda: run_health_check(check=False).returncode == 0, timeout=20)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert sorted(app.rglob("*")) == before
