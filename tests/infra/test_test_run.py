"""How the tests themselves run: against which store, and what they report."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.marks import only_ci
from tests.support.repository import ROOT
from tests.support.services.process import clean_environment
from tests.support.stores import Store, free_ports
from tests.support.stores.access import aws_environment, s3_client
from tests.support.stores.selection import STORES, chosen_stores

pytestmark = only_ci


ONE_TEST = "tests/end_to_end/test_end_to_end.py::test_what_goes_in_comes_out"


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


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_environment_names_the_store(store: Store, workers: str) -> None:
    """In xdist's workers too: without them, each would quietly start a moto of its own."""
    before = buckets(store)
    with aws_environment(store) as variables:
        code, output = run_pytest(ONE_TEST, f"--numprocesses={workers}", **variables)
    assert code == 0, output
    assert f"\nstore: {store.endpoint_url} (from AWS_ENDPOINT_URL_S3), for all" in output
    assert buckets(store) > before


def test_one_variable_chooses_the_stores() -> None:
    assert chosen_stores("") == list(STORES)
    with pytest.raises(pytest.UsageError, match=f"some of {','.join(STORES)}, not moto,minio"):
        chosen_stores("moto,minio")
    code, output = run_pytest(
        "--collect-only", "-q", "tests/end_to_end/test_end_to_end.py", STORES="moto,ceph"
    )
    assert code == 0, output
    assert set(re.findall(r"^tests/\S+\[(\w+)", output, re.MULTILINE)) == {"moto", "ceph"}


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
    tests = "tests/infra/kubernetes/test_manifests.py::test_kubectl_kustomize_builds_the_same_objects"
    code, output = run_pytest(tests, PATH=str(tmp_path), CI=ci)
    assert output.count("kubectl is not installed") == 1
    assert "\n2 tests: kubectl is not installed: see kubernetes.io/docs/tasks/tools\n" in output
    assert code == (pytest.ExitCode.TESTS_FAILED if ci else pytest.ExitCode.OK), output
    assert ("CI is true" in output) == bool(ci)
