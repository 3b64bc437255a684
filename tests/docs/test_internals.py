"""docs/internals.md lists every internal of a dependency that the service uses."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.repository import ROOT

DOCUMENT = (ROOT / "docs" / "internals.md").read_text()
CURRENT, _, REMOVED = DOCUMENT.partition("## Removed")

PUBLIC = {
    *("aioboto3", "aiobotocore.config", "aiobotocore.response", "aiohttp", "botocore.exceptions"),
    "aiobotocore.session",
    *("click", "h11", "moto.server", "prometheus_client", "prometheus_client.exposition"),
    *("opentelemetry.context", "opentelemetry.sdk.resources", "opentelemetry.sdk.trace"),
    *("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.trace"),
    "opentelemetry.sdk.trace.export",
    *("pydantic", "pydantic_settings", "python_multipart", "python_multipart.exceptions"),
    *("python_multipart.multipart", "starlette", "types_aiobotocore_s3", "uvicorn", "yaml"),
    "types_aiobotocore_s3.type_defs",
}
"""Modules with documented interfaces. All of Starlette's modules are documented."""


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in (ROOT / "service").rglob("*.py"):
        yield path, ast.parse(path.read_text())


def test_every_internal_module_is_listed() -> None:
    for path, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            package = node.module.partition(".")[0]
            if package in {"service", "starlette", *sys.stdlib_module_names}:
                continue
            if node.module not in PUBLIC:
                names = [alias.name for alias in node.names]
                missing = [name for name in names if not is_listed(name, node.module)]
                assert not missing, path.relative_to(ROOT)


def is_listed(name: str, module: str) -> bool:
    """Return whether the table names a class, or the module that it comes from."""
    leaf = ".".join(module.split(".")[-2:])
    return f"`{leaf}`" in CURRENT or re.search(rf"`([\w.]+\.)?{name}\b", CURRENT) is not None


def test_every_private_attribute_is_listed() -> None:
    private = [
        name
        for path, _ in sources()
        for name in re.findall(r"\.(_\w+)\b.*# noqa: SLF001", path.read_text())
    ]
    assert [name for name in private if f".{name}`" not in CURRENT] == []


def test_the_table_names_only_modules_and_tests_that_exist() -> None:
    rows = [line.split(" | ") for line in CURRENT.splitlines() if line.startswith("| ")]
    entries = [row for row in rows if row[0] not in {"| What", "|---"}]
    for row in entries:
        [module] = re.findall(r"`([\w/]+)`", row[1])
        assert (ROOT / "service" / f"{module}.py").exists(), module
        tests = re.findall(r"`(tests/[\w/.]+)`", row[3])
        assert tests, row[0]
        assert all((ROOT / test).exists() for test in tests), tests
    assert REMOVED
