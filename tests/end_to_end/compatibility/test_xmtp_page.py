"""examples/xmtp.md tells the truth."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings, load
from tests.end_to_end.compatibility.client import Client
from tests.end_to_end.compatibility.clients import CLIENTS, CURL
from tests.end_to_end.compatibility.reference_clients import needs_curl
from tests.support.repository import ROOT
from tests.support.services.thread import Service

PAGE = (ROOT / "examples" / "xmtp.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_pages_compose_file(monkeypatch: pytest.MonkeyPatch) -> None:
    [fragment] = blocks("yaml")
    services: dict[str, Any] = yaml.safe_load(fragment)["services"]
    localstack = yaml.safe_load((ROOT / "localstack.yml").read_text())["services"]["localstack"]
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    assert services["localstack"]["image"] == localstack["image"]
    history = services["history-server"]
    assert history["ports"] == ["5558:5558"]
    assert history["environment"] == services["init-bucket"]["environment"]
    assert history["environment"]["HISTORY_REQUIRE_HMAC"] == "false"
    assert (history["command"], services["init-bucket"]["command"]) == (["serve"], ["init-bucket"])
    interpreter, script = history["healthcheck"]["test"][1], history["healthcheck"]["test"][-1]
    assert f'ENTRYPOINT ["{interpreter}"' in dockerfile
    assert "http://127.0.0.1:5558/healthz" in script
    for found in services.values():
        assert set(found.get("depends_on", ())) <= services.keys()
    for name, value in history["environment"].items():
        monkeypatch.setenv(name, value)
    assert not load().require_hmac


def test_every_setting_that_the_page_names_exists() -> None:
    named = {name.lower() for name in re.findall(r"\bHISTORY_([A-Z_]+)", PAGE)}
    assert "require_hmac" in named
    assert named <= Settings.model_fields.keys()


def test_the_pages_table_names_the_clients_of_this_file() -> None:
    table = PAGE[PAGE.index("| client |") :]
    rows = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)[1:]
    kinds: list[type[Client]] = [getattr(kind, "values", [kind])[0] for kind in [*CLIENTS, CURL]]
    assert set(rows) == {kind.name for kind in kinds}


@needs_curl
def test_the_pages_conversation_with_the_full_proof(
    trusting: Service, service: Service, tmp_path: Path
) -> None:
    [conversation] = blocks("sh")[1:]
    for server in (trusting, service):
        (tmp_path / "bundle.bin").write_bytes(os.urandom(100_000))
        (tmp_path / "fetched.bin").unlink(missing_ok=True)
        said = subprocess.run(
            ["bash", "-euc", conversation.replace("http://localhost:5558", server.url)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (said.returncode, said.stdout) == (0, "identical\n"), said.stderr
