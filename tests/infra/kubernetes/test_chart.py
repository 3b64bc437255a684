"""The Helm chart has the same objects as the manifests, and its values are documented.

These tests do not need Helm.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

import service
from service.errors import SettingsError
from service.settings import Settings, load
from tests.infra.kubernetes.chart import CHART, complete_values, schema, templates, values
from tests.infra.kubernetes.manifests import (
    BASE,
    COMPONENTS,
    EXAMPLE,
    OLDEST_KUBERNETES,
    build,
    read,
)
from tests.support.repository import ROOT

NAMESPACE = "{{ .Release.Namespace }}"
DIFFERENCES = {
    "CronJob.spec.jobTemplate.spec.template.spec.containers.0.image": "image.repository is needed",
    "Deployment.metadata.labels": "_helpers.tpl has the labels of all objects",
    "Deployment.spec.replicas": "only without autoscaling",
    "Deployment.spec.template.metadata.annotations": "a changed setting starts new pods. kustomize "
    "changes the name of the ConfigMap instead",
    "Deployment.spec.template.spec.containers.0.image": "image.repository is needed",
    "Deployment.spec.template.spec.containers.0.ports.0.containerPort": "HISTORY_PORT",
    "Deployment.spec.template.spec.terminationGracePeriodSeconds": "computed from the settings",
    "Ingress.metadata.annotations": "compared by test_default_values_are_those_of_the_manifests",
    "Ingress.spec.rules.0.host": "ingress.host is needed",
    "Ingress.spec.tls.0.hosts.0": "ingress.host is needed",
    "Service.metadata.labels": "_helpers.tpl has the labels of all objects",
}
"""Where the templates may differ from the manifests, and why."""

SETTINGS = {
    "bucket": ("my-histories", "My_Histories"),
    "prefix": ("a/b/", "a/b"),
    "records": ("metadata", "headers"),
    "retention": ("72h", "7"),
    "max_bundle_size": ("1GiB", "1G"),
    "require_hmac": ("false", "perhaps"),
    "upload_tokens": (f"app:{'0' * 64}, web:{'1' * 64}", "app:secret"),
    "jwt_jwks_url": ("https://id.example.org/keys", "id.example.org/keys"),
    "jwt_issuer": ("https://id.example.org", None),
    "jwt_audience": ("history", None),
    "upload_limits": ("transfers:32, bytes-per-hour:10GiB", "transfers:x"),
    "cors_origins": ("https://app.example, http://localhost:8080", "app.example"),
    "part_size": ("16MiB", "16"),
    "memory_budget": ("64MiB", "64 Mi"),
    "queue_timeout": ("1m", "1min"),
    "read_timeout": ("20s", "20"),
    "drain_timeout": ("60s", "1:00"),
    "drain_delay": ("0s", "0"),
    "host": ("::", "all addresses"),
    "port": ("8080", "99999"),
    "log_format": ("text", "xml"),
    "log_level": ("debug", "trace"),
}
"""For each setting, a value that is right and one that is wrong. Some allow any text."""


@pytest.fixture
def manifests() -> dict[str, Any]:
    """The objects of the base with all components, by kind."""
    return {item["kind"]: item for item in build(BASE, extra=tuple(COMPONENTS))}


def differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """Find the paths of all values that are not the same in both."""
    if isinstance(one, list) and isinstance(other, list):
        one, other = (dict(enumerate(items)) for items in (one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differences(one.get(key), other.get(key), f"{path}.{key}")
    elif one != other:
        yield path


def problems(**changed: Any) -> list[str]:
    """Return what the schema says about the default values with these changes."""
    validator = jsonschema.Draft7Validator(schema())
    return [error.message for error in validator.iter_errors(complete_values() | changed)]


def test_templates_match_the_manifests(manifests: dict[str, Any]) -> None:
    chart = {item["kind"]: item for item in templates()}
    assert chart.keys() == manifests.keys()
    for config_map in (chart["ConfigMap"], manifests["ConfigMap"]):
        del config_map["data"]  # compared below
    found = {path for kind in chart for path in differences(chart[kind], manifests[kind], kind)}
    assert found == set(DIFFERENCES)


def test_default_values_are_those_of_the_manifests(manifests: dict[str, Any]) -> None:
    assert values()["settings"] == manifests["ConfigMap"]["data"]
    annotations = manifests["Ingress"]["metadata"]["annotations"]
    assert values()["ingress"]["annotations"] == annotations


def test_chart_has_the_version_of_the_service() -> None:
    chart = read(CHART / "Chart.yaml")
    assert chart["version"] == chart["appVersion"] == service.__version__
    assert chart["kubeVersion"] == f">={OLDEST_KUBERNETES}.0-0"


def test_documented_commands_install_and_check_the_chart() -> None:
    """NOTES.txt, which Helm prints after an installation, has the commands of infra/README.md."""
    page = (ROOT / "infra" / "README.md").read_text()
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    commands = re.findall(r"^ +(kubectl .*)$", notes.replace(NAMESPACE, "history"), re.MULTILINE)
    assert len(commands) == 2
    assert all(f"\n{command}\n" in page for command in commands)
    for text in (page, (CHART / "README.md").read_text()):
        [install] = re.findall(r"^```sh\n(.*\nhelm upgrade .*\n)```", text, re.MULTILINE)
        paths = [ROOT / path for path in re.findall(r"\binfra/\S+", install)]
        assert paths == [EXAMPLE / "namespace.yaml", CHART]
        assert install.count("--namespace history") == 1


def test_schema_knows_every_setting() -> None:
    names = {name for name in schema()["properties"]["settings"]["properties"] if "AWS" not in name}
    assert names == {f"HISTORY_{name.upper()}" for name in Settings.model_fields} - {
        "HISTORY_AWS_REGION"
    }
    assert SETTINGS.keys() == Settings.model_fields.keys() - {"aws_region"}


@pytest.mark.parametrize("wrong", [None, *(name for name, (_, value) in SETTINGS.items() if value)])
def test_schema_accepts_the_settings_that_the_service_accepts(
    wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {f"HISTORY_{name.upper()}": pair[name == wrong] for name, pair in SETTINGS.items()}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    messages = problems(settings=settings)
    if wrong is None:
        load()
        assert messages == []
        return
    with pytest.raises(SettingsError, match=f"HISTORY_{wrong.upper()}: should be"):
        load()
    assert len(messages) == 1
    assert repr(SETTINGS[wrong][1]) in messages[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"ingress": {"enabled": False}}, None),
        ({"global": {"of": "another chart"}}, None),
        (
            {"settings": {"HISTORY_BUCKET": "a-bucket"}},
            "'HISTORY_DRAIN_DELAY' is a required property",
        ),
        ({"image": {}}, "'repository' is a required property"),
        ({"ingress": {"enabled": True}}, "'host' is a required property"),
        ({"replica": 3}, "Additional properties are not allowed ('replica' was unexpected)"),
        ({"podLabels": {"team": 7}}, "7 is not of type 'string'"),
        ({"podSpec": {"containers": []}}, "Additional properties are not allowed ('containers'"),
    ],
)
def test_schema_refuses_incomplete_and_unknown_values(
    changed: dict[str, Any], message: str | None
) -> None:
    found = problems(**changed)
    assert message is None or message in found[0], found
    assert bool(found) == bool(message)


def test_access_keys_are_refused_among_the_settings() -> None:
    """They would be in a ConfigMap."""
    settings = complete_values()["settings"] | {"AWS_SECRET_ACCESS_KEY": "a-key"}
    [problem] = problems(settings=settings)
    assert problem.startswith("'AWS_SECRET_ACCESS_KEY' does not match any")


def test_variables_of_opentelemetry_are_settings_too() -> None:
    settings = complete_values()["settings"] | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
    assert problems(settings=settings) == []


@pytest.mark.parametrize("name", ["from", "egress"])
def test_network_policy_without_rules_is_refused(name: str) -> None:
    """An empty list of sources would allow all of them."""
    rules = complete_values()["networkPolicy"]
    assert problems(networkPolicy=rules | {name: []}) == ["[] should be non-empty"]
    assert problems(networkPolicy=rules | {name: None}) == ["None is not of type 'array'"]
    del rules[name]
    assert problems(networkPolicy=rules) == [f"'{name}' is a required property"]


def test_every_value_is_documented_with_its_default() -> None:
    page = (CHART / "README.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) ?\| (.*) \|$", page, re.MULTILINE)
    assert rows == list(documented(schema(), values(), ""))


def documented(node: Any, defaults: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Return the rows of the table: all values that have a description in the schema."""
    assert defaults.keys() <= node["properties"].keys()
    for name, value in node["properties"].items():
        if "description" in value:
            default = defaults.get(name, "needed")
            yield f"{prefix}{name}", cell(default), value["description"]
        elif name != "global":  # Helm adds it to the values of a chart that another one contains.
            yield from documented(value, defaults[name], f"{prefix}{name}.")


def cell(default: Any) -> str:
    if default in ("", {}, "needed"):
        return str(default or "")
    return (
        "see `values.yaml`"
        if isinstance(default, dict | list)
        else f"`{json.dumps(default)}`".replace('"', "")
    )
