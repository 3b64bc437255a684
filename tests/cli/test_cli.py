"""The commands, as processes: what they print, how they end, and that two get along."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from click.testing import CliRunner

from service.cli import main
from tests.support.clients.signing import sign
from tests.support.key_leaks import LEAKS
from tests.support.services.process import (
    NO_CERTIFICATES,
    SERVE,
    TRACED,
    clean_environment,
    memory,
    serving,
    serving_bucket,
)
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket

KEY = "the key of a command"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [*SERVE, *arguments],
        env=clean_environment(**NO_CERTIFICATES, **TRACED, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    LEAKS.search("standard error", ended.stderr)
    return ended


def test_dev_needs_nothing_touches_nothing_real_and_says_how_to_use_it(tmp_path: Path) -> None:
    """Not a profile, a configuration file, an endpoint or a proxy of the caller's."""
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:9\n")
    hostile = {
        "AWS_PROFILE": "no-such-profile",
        "AWS_CONFIG_FILE": str(config),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_REGION": "mars-north-1",
        "AWS_CA_BUNDLE": "/nowhere",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    with serving("serve", "--dev", **TRACED, **hostile) as (url, process, banner):
        assert "LOST" in banner
        assert "bucket message-history-dev: created" in banner
        assert process.stdout is not None
        conversation = banner[banner.index("printf") :] + process.stdout.readline()
        assert talk(conversation, tmp_path) == "identical\n"
        bundle = b"x" * (9 << 20)
        with httpx.Client(base_url=url, trust_env=False) as http:
            bundle_id = http.post("/upload", content=bundle).text
            assert http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle)).content == bundle
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def talk(conversation: str, folder: Path) -> str:
    """Paste the banner's lines into a shell; what it says."""
    return subprocess.run(
        ["bash", "-ec", conversation],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_two_at_the_same_time() -> None:
    with serving("serve", "--dev") as (one, *_), serving("serve", "--dev") as (other, *_):
        assert one != other
        with httpx.Client(trust_env=False) as http:
            bundle_id = http.post(f"{one}/upload", content=b"bundle").text
            proof = sign(KEY, b"bundle")
            assert http.get(f"{one}/files/{bundle_id}", headers=proof).status_code == 200
            assert http.get(f"{other}/files/{bundle_id}", headers=proof).status_code == 404


def test_a_taken_port_is_one_clear_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run("serve", "--dev", HISTORY_HOST="127.0.0.1", HISTORY_PORT=port)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Error: Cannot listen on 127.0.0.1 port {port}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["serve"], ["init-bucket"]])
def test_without_a_bucket(command: list[str]) -> None:
    ended = CliRunner().invoke(main, command, env={"HISTORY_RETENTION": "a week"})
    assert ended.exit_code == 2
    assert "HISTORY_BUCKET: should be the name of the S3 bucket" in ended.stderr
    assert "HISTORY_RETENTION: should be" in ended.stderr
    assert "serve --dev" in ended.stderr


def test_init_bucket_then_serve(store: Store, s3: Any) -> None:
    bucket = f"history-{uuid4()}"
    with aws_environment(store) as variables:
        environment: Mapping[str, str] = {"HISTORY_BUCKET": bucket, **variables}
    for line in ("created", "exists"):
        ended = run("init-bucket", **environment)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[0] == f"bucket {bucket}: {line}"
    with serving(**TRACED, **environment) as (url, process, banner):
        assert "LOST" not in banner
        with httpx.Client(base_url=url, trust_env=False) as http:
            assert http.post("/upload", content=b"bundle").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert len(s3.list_objects_v2(Bucket=bucket)["Contents"]) == 1


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize("command", ["serve", "init-bucket"])
@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_PROFILE": "no-such-profile"},
        {"AWS_ENDPOINT_URL_S3": "garbage"},
        {"AWS_DEFAULT_REGION": "no region"},
        {"AWS_ACCESS_KEY_ID": "without its secret"},
    ],
)
def test_aws_settings_that_are_none(command: str, variables: dict[str, str]) -> None:
    ended = CliRunner().invoke(main, [command], env={"HISTORY_BUCKET": "a-bucket", **variables})
    assert ended.exit_code == 2
    # The services of earlier tests share this process, and may log to the same stream.
    assert "Error: AWS's settings: " in [line[:23] for line in ended.stderr.splitlines()]


def test_init_bucket_without_a_store() -> None:
    ended = run(
        "init-bucket",
        HISTORY_BUCKET="a-bucket",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="k",
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: S3 cannot be reached (")
    assert "Traceback" not in ended.stderr


def test_dev_without_its_extra() -> None:
    program = "import sys; sys.modules['moto'] = None; from service.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "serve", "--dev"],
        env=clean_environment(**TRACED, HISTORY_PORT="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: --dev needs the embedded S3 store: pip install")
    assert ended.stderr.count("\n") == 1


def test_help_and_version() -> None:
    assert "init-bucket" in CliRunner().invoke(main, ["--help"]).output
    version = run("--version")
    assert re.fullmatch(r"message-history-server, version \d+\.\d+\.\d+\n", version.stdout)


def test_64_mib_pass_through_less_than_64_mib_of_memory(store: Store, s3: Any) -> None:
    """Sent chunked and fetched with its proof, by a process that does nothing else."""
    bundle = os.urandom(64 << 20)
    with (
        serving_bucket(store, new_bucket(s3)) as (url, process),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        http.post("/upload", content=b"what is loaded at first is not counted")
        before = memory(process.pid, "VmRSS")
        pieces = (bundle[at : at + 8192] for at in range(0, len(bundle), 8192))
        bundle_id = http.post("/upload", content=pieces).text
        uploaded = memory(process.pid, "VmHWM")
        assert http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle)).content == bundle
        fetched = memory(process.pid, "VmHWM")
    print(
        f"resident: {before >> 20} MiB, {uploaded >> 20} after upload, {fetched >> 20} after both"
    )
    assert fetched - before < 64 << 20
