"""Tests that examples/xmtp.md is correct."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.settings import Settings, load
from tests.end_to_end.compatibility.client import Client
from tests.end_to_end.compatibility.clients import CLIENTS, CURL
from tests.end_to_end.compatibility.reference_clients import needs_curl
from tests.support.clients.signing import sign
from tests.support.repository import ROOT
from tests.support.services.thread import Service

PAGE = (ROOT / "examples" / "xmtp.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_compose_file_on_the_page_is_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    [compose_file] = code_blocks("yaml")
    services: dict[str, Any] = yaml.safe_load(compose_file)["services"]
    localstack = yaml.safe_load((ROOT / "localstack.yml").read_text())["services"]["localstack"]
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    assert services["localstack"]["image"] == localstack["image"]
    history_server = services["history-server"]
    assert history_server["ports"] == ["5558:5558"]
    assert history_server["environment"] == services["init-bucket"]["environment"]
    assert history_server["environment"]["HISTORY_REQUIRE_HMAC"] == "false"
    commands = [history_server["command"], services["init-bucket"]["command"]]
    assert commands == [["serve"], ["init-bucket"]]
    health_check = history_server["healthcheck"]["test"]
    interpreter, script = health_check[1], health_check[-1]
    assert f'ENTRYPOINT ["{interpreter}"' in dockerfile
    assert "http://127.0.0.1:5558/healthz" in script
    for definition in services.values():
        assert set(definition.get("depends_on", ())) <= services.keys()
    for name, value in history_server["environment"].items():
        monkeypatch.setenv(name, value)
    assert not load().require_hmac


def test_settings_on_the_page_exist() -> None:
    setting_names = {name.lower() for name in re.findall(r"\bHISTORY_([A-Z_]+)", PAGE)}
    assert "require_hmac" in setting_names
    assert setting_names <= Settings.model_fields.keys()


def test_table_on_the_page_lists_the_tested_clients() -> None:
    table = PAGE[PAGE.index("| client |") :]
    rows = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)[1:]
    classes: list[type[Client]] = [
        getattr(client, "values", [client])[0] for client in [*CLIENTS, CURL]
    ]
    assert set(rows) == {client_class.name for client_class in classes}


def test_remote_attachment_is_read_and_deleted_by_whoever_knows_its_url(
    open_service: Service,
) -> None:
    """A proof without a stored HMAC to compare is right if it is made from the right bytes."""
    payload = os.urandom(1000)
    bundle_id = open_service.upload(payload)
    response = httpx.get(f"{open_service.url}/files/{bundle_id}", headers={"Origin": "https://x"})
    assert (response.status_code, response.content) == (200, payload)
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    own_proof = sign("a key of whoever read it", response.content)
    for headers, status in (
        ({}, 400),
        (sign("another key", b"other bytes"), 401),
        (own_proof, 204),
    ):
        deleted = open_service.http.delete(f"/files/{bundle_id}", headers=headers)
        assert deleted.status_code == status
    assert open_service.fetch(bundle_id).status_code == 404


@needs_curl
def test_commands_on_the_page_transfer_a_bundle_with_proof(
    open_service: Service, service: Service, tmp_path: Path
) -> None:
    [script] = code_blocks("sh")[1:]
    for server in (open_service, service):
        (tmp_path / "bundle.bin").write_bytes(os.urandom(100_000))
        (tmp_path / "fetched.bin").unlink(missing_ok=True)
        process = subprocess.run(
            ["bash", "-euc", script.replace("http://localhost:5558", server.url)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (process.returncode, process.stdout) == (0, "identical\n"), process.stderr
