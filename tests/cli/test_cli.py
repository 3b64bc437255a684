"""The commands: their output, their exit codes, and the settings that they refuse."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from click.testing import CliRunner

from service.cli import main
from service.http.server import open_files
from tests.support.clients.signing import sign
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.marks import needs_proc
from tests.support.services.process import (
    COVERAGE_VARIABLES,
    NO_CERTIFICATES,
    SERVICE_COMMAND,
    clean_environment,
    process_memory,
    service_process,
    service_process_for,
)
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket

KEY = "the key of a command"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*SERVICE_COMMAND, *arguments],
        env=clean_environment(**NO_CERTIFICATES, **COVERAGE_VARIABLES, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    LEAK_DETECTOR.search("standard error", result.stderr)
    return result


def test_dev_ignores_the_environment_and_prints_commands_that_work(tmp_path: Path) -> None:
    """It uses no profile, configuration file, endpoint or proxy of the caller."""
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:9\n")
    environment = {
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
    with service_process("serve", "--dev", **COVERAGE_VARIABLES, **environment) as (
        url,
        process,
        banner,
    ):
        assert "LOST" in banner
        assert "bucket message-history-dev: created" in banner
        assert process.stdout is not None
        commands = banner[banner.index("printf") :] + process.stdout.readline()
        assert run_in_shell(commands, tmp_path) == "identical\n"
        bundle = b"x" * (9 << 20)
        with httpx.Client(base_url=url, trust_env=False) as http:
            bundle_id = http.post("/upload", content=bundle).text
            assert http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle)).content == bundle
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def run_in_shell(commands: str, folder: Path) -> str:
    """Run commands in a shell, and return their output."""
    return subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_two_dev_servers_run_at_the_same_time() -> None:
    with (
        service_process("serve", "--dev") as (first, *_),
        service_process("serve", "--dev") as (second, *_),
    ):
        assert first != second
        with httpx.Client(trust_env=False) as http:
            bundle_id = http.post(f"{first}/upload", content=b"bundle").text
            proof = sign(KEY, b"bundle")
            assert http.get(f"{first}/files/{bundle_id}", headers=proof).status_code == 200
            assert http.get(f"{second}/files/{bundle_id}", headers=proof).status_code == 404


@pytest.fixture
def low_file_limit() -> Iterator[None]:
    """Limit this process and its children to 1,024 open files, as many systems do."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@needs_proc
@pytest.mark.usefixtures("low_file_limit")
def test_serve_may_open_enough_files_for_all_transfers_of_its_memory_budget() -> None:
    with service_process("serve", "--dev") as (url, *_), httpx.Client(trust_env=False) as http:
        metrics = http.get(f"{url}/metrics").text
    [limit] = re.findall(r"^process_max_fds (\S+)$", metrics, re.MULTILINE)
    assert float(limit) >= 3 * 1024


@pytest.mark.usefixtures("low_file_limit")
def test_limit_on_open_files_that_is_too_low_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    open_files.raise_limit(10**9)
    [message] = [record.getMessage() for record in caplog.records]
    assert "1000000000 transfers" in message
    assert "raise the limit (ulimit -Hn)" in message


def test_serve_excludes_its_modules_and_models_from_garbage_collection() -> None:
    script = (
        "import gc, os, signal\n"
        "from service.cli import main\n"
        "def report(*_): os.write(1, b'\\nfrozen %d\\n' % gc.get_freeze_count())\n"
        "signal.signal(signal.SIGUSR1, report)\n"
        "main(['serve', '--dev'])"
    )
    environment = clean_environment(HISTORY_PORT="0", **NO_CERTIFICATES)
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "http://" in line:
                    process.send_signal(signal.SIGUSR1)
                if line.startswith("frozen"):
                    break
        finally:
            process.kill()
    assert int(line.split()[1]) > 100_000


def test_port_in_use_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = run("serve", "--dev", HISTORY_HOST="127.0.0.1", HISTORY_PORT=port)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: Cannot listen on 127.0.0.1 port {port}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["serve"], ["init-bucket"]])
def test_missing_bucket_setting_is_reported_with_all_mistakes(command: list[str]) -> None:
    result = CliRunner().invoke(main, command, env={"HISTORY_RETENTION": "a week"})
    assert result.exit_code == 2
    assert "HISTORY_BUCKET: should be the name of the S3 bucket" in result.stderr
    assert "HISTORY_RETENTION: should be" in result.stderr
    assert "serve --dev" in result.stderr


@pytest.mark.usefixtures("_restored_logging")
def test_mistakes_of_all_kinds_are_reported_at_once() -> None:
    variables = {
        "HISTORY_PORT": "x",
        "AWS_ENDPOINT_URL_S3": "x",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "x",
    }
    result = CliRunner().invoke(main, ["serve"], env={"HISTORY_BUCKET": "a-bucket", **variables})
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert [line.split(": ")[1] for line in lines] == [
        "HISTORY_PORT",
        "AWS's settings",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ]


def test_init_bucket_prepares_a_bucket_for_serve(store: Store, s3: Any) -> None:
    bucket = f"history-{uuid4()}"
    with aws_environment(store) as variables:
        environment: Mapping[str, str] = {"HISTORY_BUCKET": bucket, **variables}
    for state in ("created", "exists"):
        result = run("init-bucket", **environment)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[0] == f"bucket {bucket}: {state}"
    with service_process(**COVERAGE_VARIABLES, **environment) as (url, process, banner):
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
        {"AWS_ENDPOINT_URL_S3": "ftp://s3.example"},
        {"AWS_ENDPOINT_URL_S3": "http://s3.example:port"},
        {"AWS_ENDPOINT_URL_S3": "http://s3.example:0"},
        {"AWS_DEFAULT_REGION": "no region"},
        {"AWS_ACCESS_KEY_ID": "without its secret"},
    ],
)
def test_invalid_aws_settings_are_reported(command: str, variables: dict[str, str]) -> None:
    result = CliRunner().invoke(main, [command], env={"HISTORY_BUCKET": "a-bucket", **variables})
    assert result.exit_code == 2
    # Services of earlier tests run in the same process and may log to the same stream.
    assert "Error: AWS's settings: " in [line[:23] for line in result.stderr.splitlines()]


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize("command", ["init-bucket", "check", "sweep"])
@pytest.mark.parametrize(
    "url", ["http://user:{}@127.0.0.1:9", "http://user:{}@not a host", "user:{}@127.0.0.1:9"]
)
def test_password_in_the_url_of_the_endpoint_is_refused_and_not_printed(
    command: str, url: str
) -> None:
    password = LEAK_DETECTOR.add_key("a-password-in-a-URL")
    variables = {"HISTORY_BUCKET": "a-bucket", "AWS_ENDPOINT_URL_S3": url.format(password)}
    result = CliRunner().invoke(main, [command], env=variables)
    assert result.exit_code == 2
    assert "without a user name and a password" in result.stderr
    assert password not in result.output


def test_init_bucket_reports_that_the_store_is_unreachable() -> None:
    result = run(
        "init-bucket",
        HISTORY_BUCKET="a-bucket",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="k",
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: S3 cannot be reached (")
    assert "Traceback" not in result.stderr


def test_dev_reports_that_its_extra_is_not_installed() -> None:
    program = "import sys; sys.modules['moto'] = None; from service.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "serve", "--dev"],
        env=clean_environment(**COVERAGE_VARIABLES, HISTORY_PORT="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: --dev needs the embedded S3 store: pip install")
    assert result.stderr.count("\n") == 1


def test_help_and_version_are_printed() -> None:
    assert "init-bucket" in CliRunner().invoke(main, ["--help"]).output
    version = run("--version")
    assert re.fullmatch(r"message-history-server, version \d+\.\d+\.\d+\n", version.stdout)


def test_bundle_of_64_mib_needs_less_than_64_mib_of_memory(store: Store, s3: Any) -> None:
    """The upload is chunked, the download needs a proof, and the process serves nothing else.

    Its memory budget is too small for the bundle, so the first download reads it twice.
    """
    bundle = os.urandom(64 << 20)
    with (
        service_process_for(store, new_bucket(s3), HISTORY_MEMORY_BUDGET="32MiB") as (url, process),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        http.post("/upload", content=b"what the first request loads is not measured")
        before = process_memory(process.pid, "VmRSS")
        chunks = (bundle[start : start + 8192] for start in range(0, len(bundle), 8192))
        bundle_id = http.post("/upload", content=chunks).text
        after_upload = process_memory(process.pid, "VmHWM")
        assert http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle)).content == bundle
        after_download = process_memory(process.pid, "VmHWM")
    print(
        f"resident memory in MiB: {before >> 20} before, {after_upload >> 20} after the upload, "
        f"{after_download >> 20} after the download"
    )
    assert after_download - before < 64 << 20
