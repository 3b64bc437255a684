"""`make stack` starts all processes, and leaves nothing behind when it stops."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.infra.stack import nginx
from tests.infra.stack.__main__ import main
from tests.infra.stack.nginx import find_nginx
from tests.infra.tools import find_or_skip
from tests.support import stores
from tests.support.clients.signing import sign
from tests.support.repository import ROOT
from tests.support.services.process import clean_environment

MIB = 1 << 20
KEY = "a signing key"


@pytest.mark.xdist_group("localstack")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)]
)
def test_stack_serves_bundles_and_leaves_no_process_or_file(
    tmp_path: Path, number: signal.Signals
) -> None:
    find_or_skip(find_nginx)
    find_or_skip(stores.localstack_python)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    output = tmp_path / "output.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.infra.stack"],
            cwd=ROOT,
            env=clean_environment(
                **{name: os.environ[name] for name in ["LOCALSTACK_VENV"] if name in os.environ},
                HISTORY_PORT="0",
                HISTORY_DRAIN_DELAY="1s",
                TMPDIR=str(temporary),
            ),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with process:
        try:
            url = read_url(process, output)
            bundle = os.urandom(9 * MIB)
            with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
                bundle_id = http.post("/upload", content=bundle).text
                response = http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
                assert response.content == bundle
                assert http.get("/readyz").status_code == 404
            assert child_pids(process.pid)
            process.send_signal(number)
            assert process.wait(60) == 0, output.read_text()
        finally:
            process.kill()
    assert not processes_with(str(temporary))
    assert not list(temporary.iterdir())
    assert bundle_id not in output.read_text()


def read_url(process: subprocess.Popen[bytes], output: Path) -> str:
    """Wait for the URL that `make stack` prints."""
    deadline = time.monotonic() + 80
    while not (match := re.search(r"server on (\S+),", output.read_text())):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    return match[1]


def child_pids(pid: int) -> list[str]:
    return subprocess.run(
        ["pgrep", "--parent", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()


def processes_with(text: str) -> list[str]:
    """Return the command lines and environments that contain this text, of all processes."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            description = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in description:
            processes.append(description.decode(errors="replace"))
    return processes


def test_missing_nginx_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nginx, "EXTRA_PATH", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HISTORY_PORT", "0")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main() == 1
    assert capsys.readouterr().err == (
        "Error: nginx is not installed: apt-get install nginx-light\n"
    )
