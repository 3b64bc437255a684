"""The collector, the alarms and the log filters use metrics and log lines of the service."""

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
from tests.infra.cloudformation.templates import BUCKET_TEMPLATE, DEFAULTS, Template
from tests.support.services.thread import Service


def exposed_metrics() -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", Metrics().exposition().decode(), flags=re.MULTILINE))


def test_collector_exports_the_metrics_that_scaling_and_alarms_use(
    service_template: Template,
) -> None:
    _, collector = service_template.properties("Task")["ContainerDefinitions"]
    environment = {variable["Name"]: variable["Value"] for variable in collector["Environment"]}
    assert collector["Command"] == [f"--config=env:{next(iter(environment))}"]
    [text] = environment.values()
    config = yaml.safe_load(text)
    [job] = config["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{DEFAULTS.port}"]}]
    assert job.get("metrics_path", "/metrics") in {route.path for route in ROUTES}
    emf = config["exporters"]["awsemf"]
    [declaration] = emf["metric_declarations"]
    [relabelling] = job["metric_relabel_configs"]
    scraped = {name for name in exposed_metrics() if re.fullmatch(relabelling["regex"], name)}
    assert scraped == {
        name
        for name in exposed_metrics()
        if re.search(declaration["metric_name_selectors"][0], name)
    }
    used: dict[str, list[Any]] = {}
    policy = service_template.properties("ScaleOnBudget")
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    for query in [
        *tracking["CustomizedMetricSpecification"]["Metrics"],
        *service_template.properties("BudgetAlarm")["Metrics"],
    ]:
        if "MetricStat" in query:
            metric = query["MetricStat"]["Metric"]
            used.setdefault(metric["MetricName"], []).append(metric)
            assert metric["Namespace"] == emf["namespace"]
            dimensions = [dimension["Name"] for dimension in metric["Dimensions"]]
            assert [dimensions] == declaration["dimensions"]
    assert used.keys() == scraped
    assert emf["log_group_name"] == "<Metrics>", "the task role only allows this log group"


def test_every_alarm_notifies_the_topic() -> None:
    template = Template(
        "service",
        imports=BUCKET_TEMPLATE.exports(),
        BucketStack="history",
        AlarmTopic="arn:aws:sns:x",
    )
    alarms = [
        name
        for name, resource in template.source["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    ]
    assert len(alarms) == 6
    for name in alarms:
        assert template.properties(name)["AlarmActions"] == ["arn:aws:sns:x"]


def test_alarms_use_the_metrics_that_log_filters_write(service_template: Template) -> None:
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
def test_log_filters_match_the_log_lines_of_the_service(
    service_template: Template, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json", "info")
    response: Any = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    for error in (
        ClientError(response, "PutObject"),
        NoCredentialsError(),
        EndpointConnectionError(endpoint_url="x"),
    ):
        S3Calls("history", Metrics()).log_failure("PutObject", error)
    logging.getLogger("service.bundles.background").info("S3 has removed all failed uploads")
    service.fetch(service.upload(b"a bundle"))
    service.http.get("/readyz")
    lines: list[dict[str, Any]] = []
    # The access log is written after the response.
    while len([line for line in lines if "route" in line]) < 3:
        lines += map(json.loads, capsys.readouterr().err.splitlines())
        time.sleep(0.01)
    failures, queued, stored = (
        service_template.properties(name) for name in ("S3Failures", "Queued", "Stored")
    )
    assert len([line for line in lines if _matches(failures["FilterPattern"], line)]) == 3
    for log_filter in (queued, stored):
        [transformation] = log_filter["MetricTransformations"]
        matching = [line for line in lines if _matches(log_filter["FilterPattern"], line)]
        assert {line["route"] for line in matching} == {"/upload", "/files/{bundle_id}"}
        value = transformation["MetricValue"].removeprefix("$.")
        assert all(isinstance(line[value], float | int) for line in matching)


def _matches(pattern: str, line: Mapping[str, Any]) -> bool:
    """Evaluate the part of CloudWatch's syntax that the template uses.

    That is `{ ($.a = "x*") && ($.b = "y") }`, or the same with `||`.
    """
    terms = re.split(r" (?:&&|\|\|) ", pattern.removeprefix("{ ").removesuffix(" }"))
    results = []
    for term in terms:
        parsed = re.fullmatch(r'\(\$\.(\w+) = "([^"]*)"\)', term)
        assert parsed is not None
        expected = re.escape(parsed[2]).replace(r"\*", ".*")
        results.append(re.fullmatch(expected, str(line.get(parsed[1]))) is not None)
    return any(results) if "||" in pattern else all(results)
