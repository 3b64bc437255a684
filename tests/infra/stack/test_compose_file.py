"""localstack.yml matches the code and the configuration of nginx."""

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from service.cli import main
from service.settings import Settings
from tests.infra.stack.nginx import NGINX, nginx_command
from tests.support.lock_files import pinned_versions
from tests.support.repository import ROOT

CHECK = [sys.executable, "-m", "check_jsonschema"]


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "localstack.yml").read_text())
    return loaded


def test_file_matches_the_compose_schema() -> None:
    """Uses the JSON Schema of the Compose specification that check-jsonschema includes."""
    result = subprocess.run(
        [*CHECK, "--builtin-schema", "vendor.compose-spec", ROOT / "localstack.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_services_use_existing_settings_commands_and_images(compose: dict[str, Any]) -> None:
    services = compose["services"]
    version = pinned_versions("requirements/localstack.txt")["localstack-core"]
    assert services["localstack"]["image"] == f"localstack/localstack:{version}"
    for name in ("init-bucket", "history-1", "history-2"):
        environment = services[name]["environment"]
        settings = {
            variable.removeprefix("HISTORY_").lower()
            for variable in environment
            if variable.startswith("HISTORY_")
        }
        assert settings <= set(Settings.model_fields)
        assert services[name]["command"][0] in main.commands
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
        assert services[name]["read_only"]
    assert services["history-1"] == services["history-2"]


def test_each_service_waits_for_its_dependencies(compose: dict[str, Any]) -> None:
    services = compose["services"]
    conditions = {
        (name, dependency): options["condition"]
        for name, service in services.items()
        for dependency, options in service.get("depends_on", {}).items()
    }
    assert conditions == {
        ("init-bucket", "localstack"): "service_healthy",
        ("history-1", "init-bucket"): "service_completed_successfully",
        ("history-2", "init-bucket"): "service_completed_successfully",
        ("nginx", "history-1"): "service_healthy",
        ("nginx", "history-2"): "service_healthy",
    }
    for _, dependency in conditions:
        assert dependency == "init-bucket" or "healthcheck" in services[dependency]


def test_grace_periods_are_long_enough_to_drain(compose: dict[str, Any]) -> None:
    config = Settings(bucket="a-bucket")
    for name in ("history-1", "history-2", "nginx"):
        grace_period = int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace_period >= config.drain_delay + config.drain_timeout + 5, name


def test_nginx_service_uses_the_files_in_infra(compose: dict[str, Any]) -> None:
    nginx = compose["services"]["nginx"]
    assert nginx["ports"] == ["127.0.0.1:5558:5558"]
    assert nginx["volumes"] == [
        "./infra/nginx:/etc/nginx:ro",
        "./infra/nginx/upstream-compose.conf:/etc/nginx/upstream.conf:ro",
    ]
    assert nginx["entrypoint"][1:] == [
        *nginx_command("nginx", "/tmp")[1:3],
        *["-c", "/etc/nginx/nginx.conf", "-e", "stderr", "-g", "daemon off;"],
    ]
    assert "\nlisten 5558;\n" in (NGINX / "listen.conf").read_text()
    upstream = (NGINX / "upstream-compose.conf").read_text()
    [replicas] = re.findall(r"^    default (\S+):5558;$", upstream, re.MULTILINE)
    aliases = {
        name: service["networks"]["default"]["aliases"]
        for name, service in compose["services"].items()
        if "networks" in service
    }
    assert aliases == {"history-1": [replicas], "history-2": [replicas]}
