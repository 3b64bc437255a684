"""localstack.yml in an engine: two replicas behind nginx, with LocalStack as S3."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.infra.containers.compose import REPLICAS, Project
from tests.infra.stack.load import Load, wait_for_transfers
from tests.support.clients.signing import sign
from tests.support.repository import ROOT
from tests.support.services.process import clean_environment

pytestmark = pytest.mark.docker

KEY = "a signing key"

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
README_COMMANDS = "".join(block for block in BLOCKS if "http://localhost:5558" in block)


def test_commands_of_the_readme_run_through_nginx(project: Project, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    result = subprocess.run(
        ["bash", "-euc", README_COMMANDS.replace("http://localhost:5558", project.url("nginx"))],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "identical\n"), result.stderr


@pytest.mark.parametrize(("uploader", "downloader"), [REPLICAS, REPLICAS[::-1]])
def test_replicas_serve_the_same_bundles(project: Project, uploader: str, downloader: str) -> None:
    for size in (2000, 20 << 20):
        bundle = os.urandom(size)
        upload = httpx.post(f"{project.url(uploader)}/upload", content=bundle, timeout=60)
        download = httpx.get(
            f"{project.url(downloader)}/files/{upload.text}", headers=sign(KEY, bundle), timeout=60
        )
        assert download.content == bundle


def test_replicas_restart_at_other_addresses_without_failed_requests(project: Project) -> None:
    # nginx sees one address for all clients, and accepts 100 requests per second from it.
    load = Load(project.url("nginx"), pause=0.2)
    transfers = 1000
    clients = 4
    with ThreadPoolExecutor(clients) as pool:
        load.clients += [pool.submit(load.run, client) for client in range(clients)]
        try:
            for number, replica in enumerate(REPLICAS, start=1):
                wait_for_transfers(load, transfers * number // 5)
                project.restart_at_another_address(replica)
            wait_for_transfers(load, transfers)
        finally:
            load.stopping.set()
    for client in load.clients:
        client.result()
    print(f"\n{dict(load.transfers)}, errors: {load.errors}")
    assert (load.errors, load.failures) == ({}, [])
    served = re.findall(r'"replica":"([\d.]+):5558', project.log("nginx").stdout)
    assert {project.address(replica) for replica in REPLICAS} <= {*served}


def test_services_log_only_json(project: Project) -> None:
    """Replicas also print their banner, to standard output."""
    logs = [project.log(replica).stderr for replica in REPLICAS]
    for log in (*logs, project.log("nginx").stdout):
        lines = [json.loads(line) for line in log.splitlines()]
        assert any("request_id" in line for line in lines)
    assert project.log("nginx").stderr == ""


def test_services_have_no_privileges_and_write_no_file(project: Project) -> None:
    for service, user in ((REPLICAS[0], 65532), (REPLICAS[1], 65532), ("nginx", 101)):
        pid = project.inspect(service)["State"]["Pid"]
        assert pid
        status = project.run("exec", "-T", service, "cat", "/proc/1/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert fields["Uid"].split() == [str(user)] * 4
        assert (int(fields["CapBnd"], 16), fields["NoNewPrivs"]) == (0, "1")
        assert project.inspect(service)["HostConfig"]["ReadonlyRootfs"]
    for service in ("init-bucket", *REPLICAS, "nginx"):
        assert project.engine.run("diff", project.container(service)) == "", service


def test_stop_finishes_transfers_within_the_grace_period(project: Project) -> None:
    bundle = os.urandom(4 << 20)
    started: list[str] = []

    def slow_chunks() -> Iterator[bytes]:
        """Send the bundle in eight seconds."""
        for start in range(0, len(bundle), len(bundle) // 16):
            yield bundle[start : start + len(bundle) // 16]
            started.append("")
            time.sleep(0.5)

    with ThreadPoolExecutor(1) as pool:
        url = project.url("nginx")
        upload = pool.submit(httpx.post, f"{url}/upload", content=slow_chunks(), timeout=60)
        while len(started) < 3:
            time.sleep(0.02)
        begin = time.monotonic()
        project.run("stop", timeout=120)
        seconds = time.monotonic() - begin
        response = upload.result()
    print(f"\nall services stopped after {seconds:.1f} s")
    assert response.status_code == 200
    for service in (*REPLICAS, "nginx"):
        assert project.inspect(service)["State"]["ExitCode"] == 0, service
    project.run("up", "--detach", "--wait", timeout=120)
