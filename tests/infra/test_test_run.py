"""How the test suite runs: which store it uses, and what it reports."""

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
from tests.support.stores.selection import QUICK_STORES, STORES, chosen_stores

pytestmark = only_ci

ONE_TEST = "tests/end_to_end/test_end_to_end.py::test_download_returns_the_uploaded_bundle"


def run_pytest(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run pytest as a subprocess. Return its exit code and its output."""
    return run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments], **variables)


def run(command: list[str], **variables: str) -> tuple[int, str]:
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=100,
    )
    return result.returncode, result.stdout


def bucket_names(store: Store) -> set[str]:
    return {bucket["Name"] for bucket in s3_client(store).list_buckets()["Buckets"]}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_endpoint_variable_selects_the_store_in_every_worker(store: Store, workers: str) -> None:
    """Without the hand-over to xdist's workers, each worker would silently start its own moto."""
    before = bucket_names(store)
    with aws_environment(store) as variables:
        code, output = run_pytest(ONE_TEST, f"--numprocesses={workers}", **variables)
    assert code == 0, output
    assert f"\nstore: {store.endpoint_url} (from AWS_ENDPOINT_URL_S3), for all" in output
    assert bucket_names(store) > before


def test_stores_variable_selects_the_stores() -> None:
    assert chosen_stores("") == list(QUICK_STORES)
    with pytest.raises(pytest.UsageError, match=f"some of {','.join(STORES)}, not moto,rustfs"):
        chosen_stores("moto,rustfs")
    code, output = run_pytest(
        "--collect-only", "-q", "tests/end_to_end/test_end_to_end.py", STORES="moto,ceph"
    )
    assert code == 0, output
    assert set(re.findall(r"^tests/\S+\[(\w+)", output, re.MULTILINE)) == {"moto", "ceph"}


def test_unreachable_store_is_reported_before_any_test_runs() -> None:
    """In pytest itself, and in `make test` even before the linters run."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    message = f"AWS_ENDPOINT_URL_S3 is {url}, where no server can be reached (Connection refused): "
    code, output = run_pytest(ONE_TEST, "--numprocesses=2", AWS_ENDPOINT_URL_S3=url)
    assert (code, message in output) == (pytest.ExitCode.USAGE_ERROR, True), output
    installed_mark = f"{sys.prefix}/test-ready"
    command = ["make", "test", f"VENV={sys.prefix}", f"--old-file={installed_mark}"]
    code, output = run(command, AWS_ENDPOINT_URL_S3=url)
    assert (code, output.startswith(message)) == (2, True), output
    assert "ruff" not in output


@pytest.mark.parametrize("ci", ["", "true"])
def test_missing_program_is_reported_once_and_fails_only_in_ci(tmp_path: Path, ci: str) -> None:
    """All tests that need the same program share one line."""
    tests = (
        "tests/infra/kubernetes/test_manifests.py::test_kubectl_kustomize_builds_the_same_objects"
    )
    code, output = run_pytest(tests, PATH=str(tmp_path), CI=ci)
    assert output.count("kubectl is not installed") == 1
    assert "\n2 tests: kubectl is not installed: see kubernetes.io/docs/tasks/tools\n" in output
    assert code == (pytest.ExitCode.TESTS_FAILED if ci else pytest.ExitCode.OK), output
    assert ("CI is true" in output) == bool(ci)
