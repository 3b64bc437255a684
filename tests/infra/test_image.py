"""The container image copies, installs and runs what it says."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.bundles.background import CLOSE_TIMEOUT
from service.settings import Settings
from tests.support.polling import until
from tests.support.repository import ROOT
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket


@pytest.fixture
def dockerfile() -> str:
    return (ROOT / "infra" / "Dockerfile").read_text()


def test_the_image_copies_what_is_there_and_let_through(dockerfile: str) -> None:
    sources = re.findall(r"^COPY (?!--from)(\S+) ", dockerfile, flags=re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert sources == ["requirements/service.txt", "service"]
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    assert re.search(r"^USER [1-9]", dockerfile, flags=re.MULTILINE)
    assert "pip install --no-cache-dir --no-deps --require-hashes -r /tmp/service.txt" in dockerfile
    assert 'ENTRYPOINT ["/opt/venv/bin/python", "-m", "service"]' in dockerfile


def test_the_image_leaves_as_the_service_does(dockerfile: str) -> None:
    """SIGTERM drains it; what it says of that is what the settings are."""
    assert "STOPSIGNAL SIGTERM" in dockerfile
    fields = Settings.model_fields
    needed = fields["drain_delay"].default + fields["drain_timeout"].default
    found = re.search(r"Give it (\d+) s before it is killed", dockerfile)
    assert found is not None
    assert needed + CLOSE_TIMEOUT < int(found[1])
    assert "/healthz" in dockerfile


@pytest.mark.soak
def test_the_image_is_installed_as_written_and_writes_nothing(
    dockerfile: str, tmp_path: Path, store: Store, s3: Any
) -> None:
    """Its steps, in a virtual environment and a folder in the place of /opt/venv and /app."""
    venv, app = tmp_path / "venv", tmp_path / "app"
    lock = str(ROOT / "requirements" / "service.txt")
    steps = re.findall(r"^(?:RUN| &&) (.*?)(?: \\)?$", dockerfile, re.MULTILINE)
    for step in steps:
        here = step.replace("/opt/venv", str(venv)).replace("/tmp/service.txt", lock)
        command = [sys.executable if word == "python" else word for word in here.split()]
        subprocess.run(command, check=True, timeout=300)
    shutil.copytree(ROOT / "service", app / "service", ignore=shutil.ignore_patterns("__pycache__"))
    before = sorted(app.rglob("*"))
    bucket = new_bucket(s3)
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
