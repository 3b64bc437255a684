"""Dashboards and alerts use metrics that the service exposes. Every alert has a runbook section."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from service.http.access_log import METHODS
from service.http.problems import STATUS
from service.http.routes import ROUTES
from service.telemetry.metrics import Metrics
from tests.support.repository import ROOT

INFRA = ROOT / "infra"
README = (INFRA / "README.md").read_text()
DASHBOARD = json.loads((INFRA / "dashboards" / "history.json").read_text())
ALERTS = [
    rule
    for group in yaml.safe_load((INFRA / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
RULE_TESTS = yaml.safe_load((INFRA / "prometheus" / "alerts_test.yaml").read_text())["tests"]
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds to every sample."""

ROWS = re.findall(r"^\| `(history_\w+)` \|([^|]*)\|([^|]*)\|$", README, re.MULTILINE)
LABELS = {name: re.findall(r"`(\w+)`", labels) for name, labels, _ in ROWS}
KNOWN_VALUES = {
    "route": {*(route.path for route in ROUTES), "other"},
    "method": {*METHODS, "other"},
    "status": {"200", "204", "206", "499", *map(str, STATUS.values())},
    "operation": {
        name
        for module in (ROOT / "service").rglob("*.py")
        for name in re.findall(r'\bcall\(\s*"(\w+)"', module.read_text())
    },
}
DOCUMENTED_VALUES = {
    value for _, _, values in ROWS for value in re.findall(r"`(\w+)`", values)
} | STATUS.keys()
"""Values of the other labels, according to the README."""


def exposed_labels() -> dict[str, set[str]]:
    """Return the labels of every sample that a process exposes once it has used every metric."""
    metrics = Metrics()
    metrics.watch("windows", SimpleNamespace(total=1, in_use=0, waiting=0))
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            if LABELS[name]:
                metric.labels(**dict.fromkeys(LABELS[name], "a"))
    samples: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


EXPOSED_LABELS = exposed_labels()


@dataclass
class Query:
    """The metrics, label matchers and labels (in `on` or `by` clauses) of a PromQL expression."""

    metrics: set[str] = field(default_factory=set)
    matchers: list[tuple[str, str, str, str]] = field(default_factory=list)
    matching_labels: set[str] = field(default_factory=set)
    grouping_labels: set[str] = field(default_factory=set)

    @property
    def result_labels(self) -> set[str]:
        """The labels that a result can have."""
        return self.grouping_labels or TARGET_LABELS.union(
            *(EXPOSED_LABELS[metric] for metric in self.metrics)
        )


KEYWORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
CLAUSES = {"by", "without", "on", "ignoring"}


def parse(expression: str) -> Query:
    """Parse enough of PromQL to distinguish metrics, functions and labels."""
    query = Query()
    without_templates = re.sub(r"<<\.LabelMatchers>>", 'pod="a"', expression).replace(
        "<<.GroupBy>>", "pod"
    )
    token = r'"[^"]*"|[A-Za-z_:][\w:]*|[0-9.]+\w*|\$\w+|=~|!~|!=|\S'
    tokens = [*re.findall(token, without_templates), ""]
    while len(tokens) > 1:
        name, following = tokens.pop(0), tokens[0]
        if not re.match(r"[A-Za-z_:]", name) or name in KEYWORDS:
            continue
        if name in CLAUSES:
            end = tokens.index(")")
            labels = query.grouping_labels if name == "by" else query.matching_labels
            labels |= {label for label in tokens[1:end] if label != ","}
            del tokens[: end + 1]
        elif following == "{":
            end = tokens.index("}")
            matchers, tokens = " ".join(tokens[1:end]), tokens[end + 1 :]
            query.metrics.add(name)
            for label, operator, value in re.findall(r'(\w+) (=~|!~|!=|=) "([^"]*)"', matchers):
                query.matchers.append((name, label, operator, value))
        elif following not in {"(", *CLAUSES}:
            query.metrics.add(name)
    return query


def check_query(expression: str) -> Query:
    """Parse an expression. Fail if it uses a metric or label that is never exposed.

    Prometheus would accept such an expression, but it would never return anything.
    """
    query = parse(expression)
    assert query.metrics
    assert query.metrics <= EXPOSED_LABELS.keys()
    for metric, label, operator, value in query.matchers:
        assert label in EXPOSED_LABELS[metric] | TARGET_LABELS, (metric, label)
        if label in TARGET_LABELS or value == "":
            continue
        known = KNOWN_VALUES.get(label, DOCUMENTED_VALUES)
        for pattern in value.split("|") if operator in ("=~", "!~") else [re.escape(value)]:
            assert any(re.fullmatch(pattern, name) for name in known), (label, value)
    metric_labels = TARGET_LABELS.union(*(EXPOSED_LABELS[metric] for metric in query.metrics))
    assert query.grouping_labels | query.matching_labels <= metric_labels
    return query


def panel_targets() -> Iterator[tuple[str, Any]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target


def test_promql_parser() -> None:
    query = parse('sum by (job, le) (rate(a_total{x=~"b|{c}", y!=""}[5m])) > ignoring (z) 2 * b_c')
    assert query.metrics == {"a_total", "b_c"}
    assert query.matchers == [("a_total", "x", "=~", "b|{c}"), ("a_total", "y", "!=", "")]
    assert (query.grouping_labels, query.matching_labels) == ({"job", "le"}, {"z"})


def test_every_metric_is_documented_with_all_labels() -> None:
    for name, labels in LABELS.items():
        [sample] = {name, f"{name}_count"} & EXPOSED_LABELS.keys()
        assert EXPOSED_LABELS[sample] == set(labels)


def test_panels_query_exposed_metrics_and_labels() -> None:
    for title, target in panel_targets():
        query = check_query(target["expr"])
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= query.result_labels, title


def test_every_metric_has_a_panel() -> None:
    shown = set().union(*(parse(target["expr"]).metrics for _, target in panel_targets()))
    metrics = {re.sub("_(bucket|count|sum)$", "", name) for name in shown}
    assert LABELS.keys() <= metrics


def test_dashboard_can_be_imported_into_any_grafana() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance"):
        query = re.fullmatch(r"label_values\((.*), (\w+)\)", variables[name]["query"]["query"])
        assert query
        assert query[2] == name
        check_query(query[1])
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval", "__all"} == variables.keys()
    sources = re.findall(r'"datasource": \{[^{}]*"uid": "(.*?)"\}', json.dumps(DASHBOARD))
    assert set(sources) == {"${datasource}"}
    targets = [target for _, target in panel_targets()]
    assert all("datasource" in part for part in (*DASHBOARD["panels"], *targets))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert "id" not in DASHBOARD


def test_panels_do_not_overlap() -> None:
    occupied: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not cells & occupied
        assert position["x"] + position["w"] <= 24
        occupied |= cells


def test_adapter_queries_exposed_metrics() -> None:
    [rule] = yaml.safe_load((INFRA / "prometheus" / "adapter.yaml").read_text())
    check_query(rule["seriesQuery"])
    query = check_query(rule["metricsQuery"])
    assert parse(rule["seriesQuery"]).metrics <= query.metrics
    assert rule["resources"]["overrides"].keys() <= TARGET_LABELS


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_alert_queries_exposed_metrics_and_links_to_the_runbook(alert: Any) -> None:
    query = check_query(alert["expr"])
    assert alert["labels"]["severity"] in ("critical", "warning")
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook"}
    assert annotations["runbook"] == f"infra/README.md#{alert['alert'].lower()}"
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values())))
    assert used <= query.result_labels


def test_every_alert_has_a_runbook_section() -> None:
    [runbook] = re.findall(r"^## Runbook\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert re.findall("^### (.*)$", runbook, re.MULTILINE) == [alert["alert"] for alert in ALERTS]
    sections = re.split("^### .*$", runbook, flags=re.MULTILINE)[1:]
    assert all("**Meaning.**" in section and "**Fix.**" in section for section in sections)


def test_every_alert_is_tested_firing_and_silent() -> None:
    names = {alert["alert"] for alert in ALERTS}
    cases = [case for test in RULE_TESTS for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names
    for test in RULE_TESTS:
        for series in test["input_series"]:
            if series["series"] != 'up{job="another"}':
                check_query(series["series"])


def test_readme_command_makes_a_prometheus_rule_of_the_alerts() -> None:
    [command] = re.findall(r"^```sh\n(\{\n.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert command.endswith("| kubectl apply -f -\n")
    result = subprocess.run(
        ["bash", "-euc", command.replace("kubectl apply -f -", "cat")],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    rule = yaml.safe_load(result.stdout)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert [alert for group in rule["spec"]["groups"] for alert in group["rules"]] == ALERTS


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install --no-install-recommends prometheus")
    result = subprocess.run([program, *arguments], capture_output=True, check=False, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_the_alerts() -> None:
    promtool("check", "rules", INFRA / "prometheus" / "alerts.yaml")
    promtool("test", "rules", INFRA / "prometheus" / "alerts_test.yaml")


def test_promtool_accepts_the_panel_queries(tmp_path: Path) -> None:
    """The queries become recording rules, because promtool cannot read a dashboard."""
    rules = [
        {
            "record": f"panel:{number}",
            "expr": re.sub(r"\$\w+", "a", target["expr"].replace("$__rate_interval", "5m")),
        }
        for number, (_, target) in enumerate(panel_targets())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)
