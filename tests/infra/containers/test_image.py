"""The image in an engine: what it contains, and how the service runs in it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import httpx
import pytest

from service import __version__
from tests.infra.containers.engine import Engine
from tests.support.clients.signing import sign
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.polling import wait_until

pytestmark = pytest.mark.docker

KEY = "a signing key"

RESTRICTIONS = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")

WRITABLE = """
import json, os, sys
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
writable = [
    path
    for root in ("/app", "/opt", "/etc", "/usr")
    for folder, _, names in os.walk(root)
    for path in [folder, *(os.path.join(folder, name) for name in names)]
    if not os.path.islink(path) and os.access(path, os.W_OK)
]
print(json.dumps({
    "ids": [os.getuid(), os.getgid(), *os.getgroups()],
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "writable": writable,
    "programs": sorted(os.listdir("/opt/venv/bin")),
}))
"""


@contextmanager
def running_container(engine: Engine, *arguments: str) -> Iterator[str]:
    """Run a container with a port on 127.0.0.1. Yield its name."""
    name = f"history-test-{uuid4().hex[:8]}"
    engine.run("network", "create", name)
    options = ("--detach", "--name", name, "--network", name, "--publish", "127.0.0.1::5558")
    try:
        engine.run("run", *options, *arguments)
        yield name
    finally:
        engine.attempt("rm", "--force", "--volumes", name)
        engine.run("network", "rm", name)


def test_image_describes_itself(engine: Engine, image: str) -> None:
    description = engine.inspect(image)
    config = description["Config"]
    labels = {
        name.removeprefix("org.opencontainers.image."): text
        for name, text in config["Labels"].items()
    }
    assert (labels["title"], labels["licenses"]) == (image, "MIT")
    assert labels["version"] == __version__
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    assert engine.run("run", "--rm", "--network=none", image, "--version").endswith(__version__)
    print(f"\nsize of the image: {description['Size'] / 1e6:.0f} MB")
    print(engine.run("history", "--human", "--format={{.Size}}\t{{.CreatedBy}}", image))


def test_process_has_no_privileges_and_finds_no_writable_file(engine: Engine, image: str) -> None:
    """Not even without `--read-only`."""
    options = ("--rm", "--network=none", "--cap-drop=ALL", "--entrypoint=/opt/venv/bin/python")
    found = json.loads(engine.run("run", *options, image, "-c", WRITABLE))
    assert {*found["ids"]} == {65532}
    assert found["capabilities"] == 0
    assert found["writable"] == []
    assert not [program for program in found["programs"] if program.startswith("pip")]


def test_image_has_what_botocore_needs_for_s3_and_for_credentials(
    engine: Engine, image: str
) -> None:
    """It has no description of any other service of AWS."""
    program = (
        "import botocore.session\n"
        "session = botocore.session.get_session()\n"
        "print(session.get_available_services())\n"
        "for name in session.get_available_services():\n"
        "    session.create_client(name, region_name='eu-central-1')\n"
        "assert session.get_partition_for_region('cn-north-1') == 'aws-cn'\n"
    )
    options = ("--rm", "--network=none", "--entrypoint=/opt/venv/bin/python")
    found = engine.run("run", *options, image, "-c", program)
    assert found == "['s3', 'sso', 'sso-oidc', 'sts']"


def test_image_has_no_embedded_store(engine: Engine, image: str) -> None:
    result = engine.attempt("run", "--rm", "--network=none", image, "serve", "--dev")
    assert (result.returncode, "--dev needs the embedded S3 store" in result.stderr) == (1, True)


@pytest.mark.parametrize("restrictions", [(), RESTRICTIONS], ids=["writable", "read-only"])
def test_dev_image_serves_bundles_and_writes_no_file(
    engine: Engine, dev_image: str, restrictions: tuple[str, ...]
) -> None:
    with running_container(engine, *restrictions, dev_image) as name:
        url = f"http://{engine.run('port', name, '5558').splitlines()[0]}"
        wait_until(partial(is_alive, url), timeout=30)
        bundle = os.urandom(20 << 20)
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            bundle_id = http.post("/upload", files={"file": bundle}).text
            response = http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
        assert response.content == bundle
        wait_until(
            lambda: engine.inspect(name)["State"]["Health"]["Status"] == "healthy", timeout=40
        )
        engine.run("stop", "--time=45", name)
        assert engine.inspect(name)["State"]["ExitCode"] == 0
        assert engine.run("diff", name) == ""
        log = engine.attempt("logs", name).stderr
    LEAK_DETECTOR.search("container", log)
    routes = [json.loads(line).get("route") for line in log.splitlines()]
    assert {"/upload", "/files/{bundle_id}", "/healthz"} <= {*routes}


def is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False
