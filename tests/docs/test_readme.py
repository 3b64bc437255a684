"""The documents are correct: their commands run, and their tables are complete."""

import importlib
import json
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

from service import errors
from service.bundles.memory import Memory
from service.cli import main
from service.http.problems import STATUS, problem
from service.http.server import open_files
from service.settings import Settings, load
from service.telemetry.metrics import Metrics
from tests.support import repository, stores
from tests.support.lock_files import pinned_versions
from tests.support.repository import ROOT, module_name
from tests.support.services.process import clean_environment, service_process
from tests.support.stores.selection import STORES

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
CLONE, UPLOAD, DOWNLOAD, EXAMPLES, DEPLOY = BLOCKS


def test_commands_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    """Other tests run `make run` and the deployment. This test uses a free port."""
    origin = tmp_path / "origin"
    repository.copy(origin)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all files"]):
        subprocess.run([*git, *command], cwd=origin, check=True, stdout=subprocess.DEVNULL)

    assert CLONE.endswith("\nmake run\n")
    commands = CLONE.removesuffix("make run\n") + UPLOAD + DOWNLOAD + EXAMPLES
    with service_process("serve", "--dev") as (url, _, _):
        result = subprocess.run(
            ["bash", "-euc", commands.replace("http://localhost:5558", url)],
            cwd=tmp_path,
            env=clean_environment(
                REPOSITORY=str(origin),
                HISTORY_URL=url,
                # With this, pip finds that all requirements are already installed.
                PYTHONPATH=":".join(site.getsitepackages()),
                PATH=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            ),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("identical\n") == 2


def test_make_run_starts_the_dev_server() -> None:
    dry_run = subprocess.run(
        ["make", "--dry-run", "run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m service serve --dev" in dry_run.stdout


def test_readme_names_the_commands_that_exist() -> None:
    deployment_commands = set(re.findall(r"message-history-server ([a-z-]+)", DEPLOY))
    assert deployment_commands == {"init-bucket", "check"}
    assert set(main.commands) == {"serve", "init-bucket", "check", "sweep", "token"}
    assert all(name in README for name in main.commands)


def documented_defaults() -> dict[str, str]:
    """Return the names and default values in the settings table. A row may have several names."""
    rows = re.findall(r"^\| (`HISTORY_[^|]*)\|([^|]*)\|", SETTINGS, flags=re.MULTILINE)
    table: dict[str, str] = {}
    for names_cell, defaults_cell in rows:
        defaults = re.findall("`([^`]*)`", defaults_cell) or [""]
        names = re.findall("`HISTORY_([A-Z_]*)`", names_cell)
        table.update(zip(names, [*defaults, *[defaults[-1]] * len(names)], strict=False))
    return table


def test_every_setting_is_documented_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    table = documented_defaults()
    assert {name.lower() for name in table} == set(Settings.model_fields) - {"aws_region"}
    monkeypatch.setenv("HISTORY_BUCKET", "a-bucket")
    default_settings = load()
    for name, value in table.items():
        if name not in ("BUCKET", "LOG_FORMAT"):
            monkeypatch.setenv(f"HISTORY_{name}", value)
    assert load() == default_settings


def test_every_error_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", ERRORS, flags=re.MULTILINE)
    assert {code: int(status) for status, code in rows} == STATUS


def test_example_of_an_error_is_a_real_response() -> None:
    [example] = re.findall(r"^```json\n(.*?)^```", ERRORS, flags=re.DOTALL | re.MULTILINE)
    response = problem(errors.InvalidHmac.code, errors.InvalidHmac.default_detail)
    assert json.loads(example) == json.loads(bytes(response.body))


def test_every_error_has_a_status() -> None:
    def leaves(error: type[errors.HistoryError]) -> list[type[errors.HistoryError]]:
        return [leaf for child in error.__subclasses__() for leaf in leaves(child)] or [error]

    codes = {leaf.code for leaf in leaves(errors.HistoryError)}
    before_routing = {"malformed_request", "uri_too_long", "headers_too_large"}
    assert codes | before_routing | {"method_not_allowed", "internal_error"} == STATUS.keys()


def test_every_store_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, table = CONTRIBUTING.partition("| `STORES=` |")
    rows = re.findall(r"^\| `(\w+)` \| .* ([\d.]+) \| (.*) \|$", table, re.MULTILINE)
    assert tuple(name for name, _, _ in rows) == STORES
    versions = {name: version for name, version, _ in rows}
    assert (
        pinned_versions("requirements/localstack.txt")["localstack-core"] == versions["localstack"]
    )
    assert pinned_versions("requirements/test.txt")["moto"].startswith(versions["moto"])
    [ceph] = (command for name, _, command in rows if name == "ceph")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(stores.NotInstalled, match=ceph.strip("`")), stores.ceph():
        pass


def test_every_package_docstring_names_its_modules() -> None:
    packages = [path.parent for path in (ROOT / "service").rglob("__init__.py")]
    for package in packages:
        docstring = importlib.import_module(module_name(package / "__init__.py")).__doc__
        modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
        modules |= {folder.name for folder in packages if folder.parent == package}
        missing = [name for name in modules if not re.search(rf"\b{name}\b", docstring or "")]
        assert not missing, package.name


def test_every_metric_is_documented() -> None:
    page = (ROOT / "infra" / "README.md").read_text()
    exposed = Metrics().exposition().decode()
    documented = re.findall(r"^\| `(history_\w+)` \|", page, re.MULTILINE)
    assert documented == re.findall(r"^# HELP (history_\w+)", exposed, re.MULTILINE)


def test_sizing_table_matches_the_memory_limit() -> None:
    page = (ROOT / "infra" / "README.md").read_text()
    rows = re.findall(
        r"^\| (\d+) ([MG])iB[^|]*\| (\d+) MiB \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$",
        page,
        re.MULTILINE,
    )
    assert len(rows) == 3
    part_size = Settings.model_fields["part_size"].default
    for number, unit, container, *counts in rows:
        budget = int(number) << {"M": 20, "G": 30}[unit]
        memory = Memory(budget, part_size=part_size, timeout=1)
        transfers, full_parts, files = (int(count.replace(",", "")) for count in counts)
        assert int(container) << 20 >= budget + (160 << 20)
        assert transfers == memory.max_transfers
        assert full_parts == memory.buffers.total // part_size
        needed = transfers * open_files.CONNECTIONS_PER_TRANSFER + open_files.OTHER_FILES
        assert needed <= files < 1.1 * needed
