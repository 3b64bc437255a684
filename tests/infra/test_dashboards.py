"""Dashboards and alerts ask for what the service exposes, and every alert has its remedy."""

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
TARGET = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus puts on what it scrapes."""

ROWS = re.findall(r"^\| `(history_\w+)` \|([^|]*)\|([^|]*)\|$", README, re.MULTILINE)
LABELS = {name: re.findall(r"`(\w+)`", labels) for name, labels, _ in ROWS}
VALUES = {
    "route": {*(route.path for route in ROUTES), "other"},
    "method": {*METHODS, "other"},
    "status": {"200", "204", "206", "499", *map(str, STATUS.values())},
    "operation": {
        name
        for module in (ROOT / "service").rglob("*.py")
        for name in re.findall(r'\bcall\(\s*"(\w+)"', module.read_text())
    },
}
WORDS = {word for _, _, words in ROWS for word in re.findall(r"`(\w+)`", words)} | STATUS.keys()
"""What the README says that other labels hold."""


def exposed() -> dict[str, set[str]]:
    """Every sample's labels, as a process exposes them that has used every metric."""
    metrics = Metrics()
    metrics.watch("parts", SimpleNamespace(total=1, in_use=0, waiting=0))
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


EXPOSED = exposed()


@dataclass
class Query:
    """What a PromQL expression names: metrics, matchers, and labels to match or group by."""

    metrics: set[str] = field(default_factory=set)
    matchers: list[tuple[str, str, str, str]] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)
    grouped: set[str] = field(default_factory=set)

    @property
    def labels(self) -> set[str]:
        """Those that a result can have."""
        return self.grouped or TARGET.union(*(EXPOSED[metric] for metric in self.metrics))


KEYWORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
CLAUSES = {"by", "without", "on", "ignoring"}


def parse(expression: str) -> Query:
    """Enough of PromQL to know a metric from a function, and a label from either."""
    query = Query()
    plain = re.sub(r"<<\.LabelMatchers>>", 'pod="a"', expression).replace("<<.GroupBy>>", "pod")
    token = r'"[^"]*"|[A-Za-z_:][\w:]*|[0-9.]+\w*|\$\w+|=~|!~|!=|\S'
    tokens = [*re.findall(token, plain), ""]
    while len(tokens) > 1:
        name, following = tokens.pop(0), tokens[0]
        if not re.match(r"[A-Za-z_:]", name) or name in KEYWORDS:
            continue
        if name in CLAUSES:
            end = tokens.index(")")
            labels = query.grouped if name == "by" else query.matched
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


def check(expression: str) -> Query:
    """Fail where an expression asks for what is never exposed, and would be silent for ever."""
    query = parse(expression)
    assert query.metrics
    assert query.metrics <= EXPOSED.keys()
    for metric, label, operator, value in query.matchers:
        assert label in EXPOSED[metric] | TARGET, (metric, label)
        if label in TARGET or value == "":
            continue
        known = VALUES.get(label, WORDS)
        for one in value.split("|") if operator in ("=~", "!~") else [re.escape(value)]:
            assert any(re.fullmatch(one, word) for word in known), (label, value)
    of_metrics = TARGET.union(*(EXPOSED[metric] for metric in query.metrics))
    assert query.grouped | query.matched <= of_metrics
    return query


def targets() -> Iterator[tuple[str, Any]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target


def test_the_reader_of_promql() -> None:
    query = parse('sum by (job, le) (rate(a_total{x=~"b|{c}", y!=""}[5m])) > ignoring (z) 2 * b_c')
    assert query.metrics == {"a_total", "b_c"}
    assert query.matchers == [("a_total", "x", "=~", "b|{c}"), ("a_total", "y", "!=", "")]
    assert (query.grouped, query.matched) == ({"job", "le"}, {"z"})


def test_every_metric_is_documented_with_its_labels() -> None:
    for name, labels in LABELS.items():
        [sample] = {name, f"{name}_count"} & EXPOSED.keys()
        assert EXPOSED[sample] == set(labels)


def test_panels_ask_for_what_there_is() -> None:
    for title, target in targets():
        query = check(target["expr"])
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= query.labels, title


def test_every_metric_has_a_panel() -> None:
    shown = set().union(*(parse(target["expr"]).metrics for _, target in targets()))
    bare = {re.sub("_(bucket|count|sum)$", "", name) for name in shown}
    assert LABELS.keys() <= bare


def test_the_dashboard_can_be_imported_anywhere() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance"):
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variables[name]["query"]["query"])
        assert asked
        assert asked[2] == name
        check(asked[1])
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval", "__all"} == variables.keys()
    sources = re.findall(r'"datasource": \{[^{}]*"uid": "(.*?)"\}', json.dumps(DASHBOARD))
    assert set(sources) == {"${datasource}"}
    assert all("datasource" in one for one in (*DASHBOARD["panels"], *(t for _, t in targets())))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert "id" not in DASHBOARD


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_adapter_asks_for_what_there_is() -> None:
    [rule] = yaml.safe_load((INFRA / "prometheus" / "adapter.yaml").read_text())
    check(rule["seriesQuery"])
    query = check(rule["metricsQuery"])
    assert parse(rule["seriesQuery"]).metrics <= query.metrics
    assert rule["resources"]["overrides"].keys() <= TARGET


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_can_fire_and_says_what_to_do(alert: Any) -> None:
    query = check(alert["expr"])
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert notes["runbook"] == f"infra/README.md#{alert['alert'].lower()}"
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(notes.values())))
    assert used <= query.labels


def test_every_alert_has_its_section_in_the_runbook() -> None:
    [runbook] = re.findall(r"^## Runbook\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    assert re.findall("^### (.*)$", runbook, re.MULTILINE) == [alert["alert"] for alert in ALERTS]
    sections = re.split("^### .*$", runbook, flags=re.MULTILINE)[1:]
    assert all("**Meaning.**" in section and "**Fix.**" in section for section in sections)


def test_every_alert_is_tried_in_fair_weather_and_foul() -> None:
    names = {alert["alert"] for alert in ALERTS}
    tried = [one for test in RULE_TESTS for one in test["alert_rule_test"]]
    assert {one["alertname"] for one in tried if one.get("exp_alerts")} == names
    assert {one["alertname"] for one in tried if not one.get("exp_alerts")} == names
    for test in RULE_TESTS:
        for series in test["input_series"]:
            if series["series"] != 'up{job="another"}':
                check(series["series"])


def test_the_operator_gets_the_same_alerts() -> None:
    """The command makes them a PrometheusRule."""
    [command] = re.findall(r"^```sh\n(\{\n.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert command.endswith("| kubectl apply -f -\n")
    said = subprocess.run(
        ["bash", "-euc", command.replace("kubectl apply -f -", "cat")],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    rule = yaml.safe_load(said.stdout)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert [alert for group in rule["spec"]["groups"] for alert in group["rules"]] == ALERTS


def promtool(*arguments: str | Path) -> None:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install --no-install-recommends prometheus")
    said = subprocess.run([found, *arguments], capture_output=True, check=False, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


def test_promtool_takes_the_alerts() -> None:
    promtool("check", "rules", INFRA / "prometheus" / "alerts.yaml")
    promtool("test", "rules", INFRA / "prometheus" / "alerts_test.yaml")


def test_promtool_takes_the_panels(tmp_path: Path) -> None:
    """As recording rules, since those it parses."""
    rules = [
        {
            "record": f"panel:{number}",
            "expr": re.sub(r"\$\w+", "a", target["expr"].replace("$__rate_interval", "5m")),
        }
        for number, (_, target) in enumerate(targets())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)
