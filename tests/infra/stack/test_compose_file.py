"""localstack.yml agrees with the code and with nginx's configuration."""

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from service.cli import main
from service.settings import Settings
from tests.infra.stack.nginx import NGINX, command
from tests.support.lock_files import pinned_here
from tests.support.repository import ROOT

CHECK = [sys.executable, "-m", "check_jsonschema"]


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "localstack.yml").read_text())
    return loaded


def test_it_is_a_compose_file() -> None:
    """By the Compose specification's JSON Schema, as check-jsonschema brings it along."""
    checked = subprocess.run(
        [*CHECK, "--builtin-schema", "vendor.compose-spec", ROOT / "localstack.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_its_services_are_what_is_here(compose: dict[str, Any]) -> None:
    services = compose["services"]
    version = pinned_here("requirements/localstack.txt")["localstack-core"]
    assert services["localstack"]["image"] == f"localstack/localstack:{version}"
    for name in ("init-bucket", "history-1", "history-2"):
        variables = {it for it in services[name]["environment"] if it.startswith("HISTORY_")}
        assert {it.removeprefix("HISTORY_").lower() for it in variables} <= set(
            Settings.model_fields
        )
        assert services[name]["command"][0] in main.commands
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
        assert services[name]["read_only"]
    assert services["history-1"] == services["history-2"]


def test_each_service_waits_for_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    waits = {
        (name, needed): condition["condition"]
        for name, service in services.items()
        for needed, condition in service.get("depends_on", {}).items()
    }
    assert waits == {
        ("init-bucket", "localstack"): "service_healthy",
        ("history-1", "init-bucket"): "service_completed_successfully",
        ("history-2", "init-bucket"): "service_completed_successfully",
        ("nginx", "history-1"): "service_healthy",
        ("nginx", "history-2"): "service_healthy",
    }
    for _, needed in waits:
        assert needed == "init-bucket" or "healthcheck" in services[needed]


def test_it_grants_the_time_that_draining_takes(compose: dict[str, Any]) -> None:
    config = Settings(bucket="a-bucket")
    for name in ("history-1", "history-2", "nginx"):
        grace = int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace >= config.drain_delay + config.drain_timeout + 5, name


def test_nginx_there_has_the_very_same_files(compose: dict[str, Any]) -> None:
    nginx = compose["services"]["nginx"]
    assert nginx["ports"] == ["5558:5558"]
    assert nginx["volumes"] == ["./infra/nginx:/etc/nginx:ro"]
    assert nginx["entrypoint"][1:] == [
        *command("nginx", "/tmp")[1:3],
        *["-c", "/etc/nginx/nginx.conf", "-e", "stderr", "-g", "daemon off;"],
    ]
    assert (NGINX / "listen.conf").read_text().endswith("\nlisten 5558;\n")
    upstream = (NGINX / "upstream.conf").read_text()
    replicas = re.findall(r"server (\S+):5558 ", upstream)
    assert replicas == [name for name in compose["services"] if name.startswith("history-")]
