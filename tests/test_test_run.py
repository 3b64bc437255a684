"""How the tests themselves run: against which store, and what they report."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import s3_client
from tests.stores import Store, free_ports, moto
from tests.test_cli import clean_environment

ROOT = Path(__file__).parents[1]

ONE_TEST = "tests/test_end_to_end.py::test_what_goes_in_comes_out"


def run_pytest(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run some tests in a process: its exit code, and all that it printed."""
    return run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments], **variables)


def run(command: list[str], **variables: str) -> tuple[int, str]:
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=100,
    )
    return ended.returncode, ended.stdout


def buckets(store: Store) -> set[str]:
    return {bucket["Name"] for bucket in s3_client(store).list_buckets()["Buckets"]}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_environment_names_the_store(workers: str) -> None:
    """In xdist's workers too: without them, each would quietly start a moto of its own."""
    with moto() as named:
        code, output = run_pytest(
            ONE_TEST, f"--numprocesses={workers}", AWS_ENDPOINT_URL_S3=named.endpoint_url
        )
        assert code == 0, output
        assert f"\nstore: {named.endpoint_url} (from AWS_ENDPOINT_URL_S3), for all" in output
        assert buckets(named)


def test_a_named_store_that_is_not_there_is_said_at_once() -> None:
    """By pytest, and by `make test` before anything else."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    sentence = (
        f"AWS_ENDPOINT_URL_S3 is {url}, where no server can be reached (Connection refused): "
    )
    code, output = run_pytest(ONE_TEST, "--numprocesses=2", AWS_ENDPOINT_URL_S3=url)
    assert (code, sentence in output) == (pytest.ExitCode.USAGE_ERROR, True), output
    installed = f"{sys.prefix}/test-ready"
    command = ["make", "test", f"VENV={sys.prefix}", f"--old-file={installed}"]
    code, output = run(command, AWS_ENDPOINT_URL_S3=url)
    assert (code, output.startswith(sentence)) == (2, True), output
    assert "ruff" not in output


@pytest.mark.parametrize("ci", ["", "true"])
def test_what_is_not_installed_is_said_once_and_fails_in_ci(tmp_path: Path, ci: str) -> None:
    """One line for all tests that miss the same."""
    for program in ("openssl", "env"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    code, output = run_pytest(
        "tests/test_compatibility.py", "-k=curl or node", PATH=str(tmp_path), CI=ci
    )
    assert output.count("curl is not installed") == output.count("Node.js is not installed") == 1
    assert " tests: curl is not installed: apt-get install curl\n" in output
    assert code == (pytest.ExitCode.TESTS_FAILED if ci else pytest.ExitCode.OK), output
    assert ("CI is true" in output) == bool(ci)
