"""The task and its container fit the image and the settings."""

import json
import re
from typing import Any

import pytest

from service.bundles import background
from service.http.server import server
from service.settings import Settings
from tests.infra.cloudformation.templates import DEFAULTS, PAIR, Template, attributes
from tests.support.repository import ROOT


def test_the_container_is_the_images(service_template: Template) -> None:
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    for container in service_template.properties("Task")["ContainerDefinitions"]:
        assert container["ReadonlyRootFilesystem"] is True
        assert container["LinuxParameters"] == {"Capabilities": {"Drop": ["ALL"]}}
        assert f"USER {container['User']}\n" in dockerfile
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    [test] = re.findall("^HEALTHCHECK .*CMD (.*)$", dockerfile, flags=re.MULTILINE)
    assert history["HealthCheck"]["Command"] == ["CMD", *json.loads(test)]
    assert f"EXPOSE {DEFAULTS.port}\n" in dockerfile


def test_everyone_means_the_same_port(service_template: Template) -> None:
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


def _rules(template: Template, group: str, way: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = template.properties(group)[f"SecurityGroup{way}"]
    return found


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_memory_fits_the_budget(size: str) -> None:
    template = Template("service", imports=PAIR.exports(), BucketStack="history", Size=size)
    task = template.properties("Task")
    history, collector = task["ContainerDefinitions"]
    environment = {one["Name"]: one["Value"] for one in history["Environment"]}
    budget = Settings(bucket="history", memory_budget=environment["HISTORY_MEMORY_BUDGET"])
    assert history["MemoryReservation"] == budget.memory_budget / (1 << 20) + 160
    assert history["MemoryReservation"] + collector["Memory"] <= task["Memory"]
    assert task["Cpu"] <= 1024


def test_a_task_has_the_time_that_it_takes_to_end(service_template: Template) -> None:
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    draining = DEFAULTS.drain_delay + DEFAULTS.drain_timeout
    ending = draining + server.LAST_REQUESTS + background.CLOSE_TIMEOUT
    assert ending + 10 <= history["StopTimeout"] <= 120, "Fargate gives two minutes at most"
    targets = attributes(service_template.properties("Targets")["TargetGroupAttributes"])
    assert int(targets["deregistration_delay.timeout_seconds"]) >= draining
    assert targets["load_balancing.algorithm.type"] == "least_outstanding_requests"
