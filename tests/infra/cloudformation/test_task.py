"""The task and its containers fit the image and the settings."""

import json
import re
from typing import Any

import pytest

from service.bundles import background
from service.http.server import server
from service.settings import Settings
from tests.infra.cloudformation.templates import BUCKET_TEMPLATE, DEFAULTS, Template, attributes
from tests.support.repository import ROOT


def test_containers_match_the_image(service_template: Template) -> None:
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    for container in service_template.properties("Task")["ContainerDefinitions"]:
        assert container["ReadonlyRootFilesystem"] is True
        assert container["LinuxParameters"] == {"Capabilities": {"Drop": ["ALL"]}}
        assert f"USER {container['User']}\n" in dockerfile
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    [health_check] = re.findall("^HEALTHCHECK .*CMD (.*)$", dockerfile, flags=re.MULTILINE)
    assert history["HealthCheck"]["Command"] == ["CMD", *json.loads(health_check)]
    assert f"EXPOSE {DEFAULTS.port}\n" in dockerfile


def test_all_resources_use_the_same_port(service_template: Template) -> None:
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    [target] = service_template.properties("Service")["LoadBalancers"]
    ports = {
        history["PortMappings"][0]["ContainerPort"],
        target["ContainerPort"],
        service_template.properties("Targets")["Port"],
        *(rule["FromPort"] for rule in _rules(service_template, "BalancerGroup", "Egress")),
        *(rule["ToPort"] for rule in _rules(service_template, "BalancerGroup", "Egress")),
        service_template.properties("TaskIngress")["FromPort"],
        service_template.properties("TaskIngress")["ToPort"],
    }
    assert ports == {DEFAULTS.port}
    assert target["ContainerName"] == history["Name"]


def _rules(template: Template, group: str, direction: str) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = template.properties(group)[f"SecurityGroup{direction}"]
    return rules


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_memory_fits_the_memory_budget(size: str) -> None:
    template = Template(
        "service", imports=BUCKET_TEMPLATE.exports(), BucketStack="history", Size=size
    )
    task = template.properties("Task")
    history, collector = task["ContainerDefinitions"]
    environment = {variable["Name"]: variable["Value"] for variable in history["Environment"]}
    settings = Settings(bucket="history", memory_budget=environment["HISTORY_MEMORY_BUDGET"])
    assert history["MemoryReservation"] == settings.memory_budget / (1 << 20) + 160
    assert history["MemoryReservation"] + collector["Memory"] <= task["Memory"]
    assert task["Cpu"] <= 1024


def test_task_has_enough_time_to_shut_down(service_template: Template) -> None:
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    drain_time = DEFAULTS.drain_delay + DEFAULTS.drain_timeout
    shutdown_time = drain_time + server.LAST_REQUESTS + background.CLOSE_TIMEOUT
    assert shutdown_time + 10 <= history["StopTimeout"] <= 120, "Fargate allows 120 s at most"
    targets = attributes(service_template.properties("Targets")["TargetGroupAttributes"])
    assert int(targets["deregistration_delay.timeout_seconds"]) >= drain_time
    assert targets["load_balancing.algorithm.type"] == "least_outstanding_requests"
