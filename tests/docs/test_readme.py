"""The documents tell the truth: their commands run, their tables are whole."""

import importlib
import json
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

from service import errors
from service.cli import main
from service.http.problems import STATUS, problem
from service.settings import Settings, load
from service.telemetry.metrics import Metrics
from tests.support import repository, stores
from tests.support.lock_files import pinned_here
from tests.support.repository import ROOT, module_name
from tests.support.services.process import clean_environment, serving
from tests.support.stores.selection import STORES

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
CLONE, UPLOAD, FETCH, EXAMPLES, DEPLOY = BLOCKS


def test_the_commands_run_one_after_the_other(tmp_path: Path) -> None:
    """All but `make run` and deployment, which run elsewhere; the port is that of this test."""
    origin = tmp_path / "origin"
    repository.copy(origin)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all of it"]):
        subprocess.run([*git, *command], cwd=origin, check=True, stdout=subprocess.DEVNULL)

    assert CLONE.endswith("\nmake run\n")
    conversation = CLONE.removesuffix("make run\n") + UPLOAD + FETCH + EXAMPLES
    with serving("serve", "--dev") as (url, _, _):
        said = subprocess.run(
            ["bash", "-euc", conversation.replace("http://localhost:5558", url)],
            cwd=tmp_path,
            env=clean_environment(
                REPOSITORY=str(origin),
                HISTORY_URL=url,
                # So that pip finds what it is asked for already there.
                PYTHONPATH=":".join(site.getsitepackages()),
                PATH=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            ),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("identical\n") == 2


def test_make_run_is_the_dev_server() -> None:
    dry = subprocess.run(
        ["make", "--dry-run", "run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m service serve --dev" in dry.stdout


def test_deployment_uses_commands_that_exist() -> None:
    used = set(re.findall(r"message-history-server ([a-z-]+)", DEPLOY))
    assert used == {"init-bucket", "check"}
    assert set(main.commands) == {"serve", "init-bucket", "check"}
    assert all(name in README for name in main.commands)


def defaults() -> dict[str, str]:
    """The settings table: names and default values as they stand there."""
    rows = re.findall(r"^\| (`HISTORY_[^|]*)\|([^|]*)\|", SETTINGS, flags=re.MULTILINE)
    table: dict[str, str] = {}
    for names, values in rows:
        found = re.findall("`([^`]*)`", values) or [""]
        named = re.findall("`HISTORY_([A-Z_]*)`", names)
        table.update(zip(named, [*found, *[found[-1]] * len(named)], strict=False))
    return table


def test_every_setting_is_there_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    table = defaults()
    assert {name.lower() for name in table} == set(Settings.model_fields) - {"aws_region"}
    monkeypatch.setenv("HISTORY_BUCKET", "a-bucket")
    as_shipped = load()
    for name, value in table.items():
        if name not in ("BUCKET", "LOG_FORMAT"):
            monkeypatch.setenv(f"HISTORY_{name}", value)
    assert load() == as_shipped


def test_every_error_is_there_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", ERRORS, flags=re.MULTILINE)
    assert {code: int(status) for status, code in rows} == STATUS


def test_the_example_of_an_error_is_a_real_response() -> None:
    [example] = re.findall(r"^```json\n(.*?)^```", ERRORS, flags=re.DOTALL | re.MULTILINE)
    response = problem(errors.InvalidHmac.code, errors.InvalidHmac.default_detail)
    assert json.loads(example) == json.loads(bytes(response.body))


def test_every_error_has_its_status() -> None:
    def leaves(error: type[errors.HistoryError]) -> list[type[errors.HistoryError]]:
        return [leaf for sub in error.__subclasses__() for leaf in leaves(sub)] or [error]

    codes = {leaf.code for leaf in leaves(errors.HistoryError)}
    before_routing = {"malformed_request", "uri_too_long", "headers_too_large"}
    assert codes | before_routing | {"method_not_allowed", "internal_error"} == STATUS.keys()


def test_every_store_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, table = CONTRIBUTING.partition("| `STORES=` |")
    rows = re.findall(r"^\| `(\w+)` \| .* ([\d.]+) \| (.*) \|$", table, re.MULTILINE)
    assert tuple(name for name, _, _ in rows) == STORES
    versions = {name: version for name, version, _ in rows}
    assert pinned_here("requirements/localstack.txt")["localstack-core"] == versions["localstack"]
    assert pinned_here("requirements/test.txt")["moto"].startswith(versions["moto"])
    [ceph] = (command for name, _, command in rows if name == "ceph")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(stores.NotInstalled, match=ceph.strip("`")), stores.ceph():
        pass


def test_every_package_describes_its_modules() -> None:
    packages = [path.parent for path in (ROOT / "service").rglob("__init__.py")]
    for package in packages:
        docstring = importlib.import_module(module_name(package / "__init__.py")).__doc__
        modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
        modules |= {folder.name for folder in packages if folder.parent == package}
        missing = [name for name in modules if not re.search(rf"\b{name}\b", docstring or "")]
        assert not missing, package.name


def test_every_metric_is_there() -> None:
    page = (ROOT / "infra" / "README.md").read_text()
    exposed = Metrics().exposition().decode()
    documented = re.findall(r"^\| `(history_\w+)` \|", page, re.MULTILINE)
    assert documented == re.findall(r"^# HELP (history_\w+)", exposed, re.MULTILINE)
