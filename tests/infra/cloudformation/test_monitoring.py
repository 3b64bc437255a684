"""The collector, the alarms and the log filters ask for what the service emits."""

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from service.http.routes import ROUTES
from service.s3.calls import S3Calls
from service.telemetry import logs
from service.telemetry.metrics import Metrics
from tests.infra.cloudformation.templates import DEFAULTS, PAIR, Template
from tests.support.services.thread import Service


def exposed() -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", Metrics().exposition().decode(), flags=re.MULTILINE))


def test_the_collector_reads_what_scaling_and_alarms_ask_for(service_template: Template) -> None:
    _, collector = service_template.properties("Task")["ContainerDefinitions"]
    environment = {one["Name"]: one["Value"] for one in collector["Environment"]}
    assert collector["Command"] == [f"--config=env:{next(iter(environment))}"]
    [text] = environment.values()
    config = yaml.safe_load(text)
    [job] = config["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{DEFAULTS.port}"]}]
    assert job.get("metrics_path", "/metrics") in {route.path for route in ROUTES}
    emf = config["exporters"]["awsemf"]
    [declared] = emf["metric_declarations"]
    [relabelled] = job["metric_relabel_configs"]
    read = {name for name in exposed() if re.fullmatch(relabelled["regex"], name)}
    assert read == {
        name for name in exposed() if re.search(declared["metric_name_selectors"][0], name)
    }
    asked: dict[str, list[Any]] = {}
    policy = service_template.properties("ScaleOnBudget")
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    for query in [
        *tracking["CustomizedMetricSpecification"]["Metrics"],
        *service_template.properties("BudgetAlarm")["Metrics"],
    ]:
        if "MetricStat" in query:
            metric = query["MetricStat"]["Metric"]
            asked.setdefault(metric["MetricName"], []).append(metric)
            assert metric["Namespace"] == emf["namespace"]
            assert [[one["Name"] for one in metric["Dimensions"]]] == declared["dimensions"]
    assert asked.keys() == read
    assert emf["log_group_name"] == "<Metrics>", "where the role lets it write"


def test_every_alarm_goes_to_the_topic() -> None:
    template = Template(
        "service", imports=PAIR.exports(), BucketStack="history", AlarmTopic="arn:aws:sns:x"
    )
    alarms = [
        name
        for name, resource in template.source["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    ]
    assert len(alarms) == 6
    for name in alarms:
        assert template.properties(name)["AlarmActions"] == ["arn:aws:sns:x"]


def test_every_metric_that_an_alarm_reads_from_the_log_is_written(
    service_template: Template,
) -> None:
    written = {
        service_template.properties(name)["MetricTransformations"][0]["MetricName"]
        for name in ("S3Failures", "Queued", "Stored")
    }
    read = {service_template.properties("S3Alarm")["MetricName"]} | {
        query["MetricStat"]["Metric"]["MetricName"]
        for query in service_template.properties("LatencyAlarm")["Metrics"]
        if "MetricStat" in query
    }
    assert read == written


@pytest.mark.usefixtures("_restored_logging")
def test_the_log_filters_find_their_lines(
    service_template: Template, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json", "info")
    refusal: Any = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    for error in (
        ClientError(refusal, "PutObject"),
        NoCredentialsError(),
        EndpointConnectionError(endpoint_url="x"),
    ):
        S3Calls("history", Metrics()).log_failure("PutObject", error)
    logging.getLogger("service.bundles.background").info(
        "S3 has removed what was left of failed uploads"
    )
    service.fetch(service.upload(b"a bundle"))
    service.http.get("/readyz")
    written: list[dict[str, Any]] = []
    while len([line for line in written if "route" in line]) < 3:  # They follow their answers.
        written += map(json.loads, capsys.readouterr().err.splitlines())
        time.sleep(0.01)
    failures, queued, stored = (
        service_template.properties(name) for name in ("S3Failures", "Queued", "Stored")
    )
    assert len([line for line in written if _found(failures["FilterPattern"], line)]) == 3
    for watched in (queued, stored):
        [transformation] = watched["MetricTransformations"]
        found = [line for line in written if _found(watched["FilterPattern"], line)]
        assert {line["route"] for line in found} == {"/upload", "/files/{bundle_id}"}
        value = transformation["MetricValue"].removeprefix("$.")
        assert all(isinstance(line[value], float | int) for line in found)


def _found(pattern: str, line: Mapping[str, Any]) -> bool:
    """As much of CloudWatch's syntax as is used: `{ ($.a = "x*") && ($.b = "y") }`, or `||`."""
    terms = re.split(r" (?:&&|\|\|) ", pattern.removeprefix("{ ").removesuffix(" }"))
    held = []
    for term in terms:
        parsed = re.fullmatch(r'\(\$\.(\w+) = "([^"]*)"\)', term)
        assert parsed is not None
        wanted = re.escape(parsed[2]).replace(r"\*", ".*")
        held.append(re.fullmatch(wanted, str(line.get(parsed[1]))) is not None)
    return any(held) if "||" in pattern else all(held)
