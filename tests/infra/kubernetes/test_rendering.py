"""Helm renders the objects that kustomize builds, and refuses wrong values.

Both programs are built from source, so these tests do not run in `make test`.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import service
from service.bundles import background
from service.http.server import server
from tests.infra.kubernetes.chart import CHART, NEEDED
from tests.infra.kubernetes.manifests import (
    BASE,
    COMPONENTS,
    Object,
    containers,
    copy_example,
)
from tests.infra.kubernetes.programs import by_kind, example_values, helm, kustomize, render
from tests.infra.tools import run_tool

pytestmark = pytest.mark.soak

TAG = f"1.2@sha256:{'0' * 64}"
WITH_COMPONENTS = {
    "autoscaling": {"byMemory": True},
    "serviceMonitor": {"enabled": True},
    "sweep": {"enabled": True},
}
"""The values that add what the components of kustomize add."""


@pytest.fixture
def example() -> Any:
    return example_values()


def remove_what_only_helm_adds(objects: dict[str, Object]) -> None:
    """Remove the labels of the release, and what replaces the hash in the ConfigMap's name."""
    version = service.__version__
    for kind, item in objects.items():
        labels = item["metadata"]["labels"]
        assert labels.pop("helm.sh/chart") == f"message-history-server-{version}"
        assert labels.pop("app.kubernetes.io/managed-by") == "Helm"
        assert labels.pop("app.kubernetes.io/instance") == "history"
        assert labels.pop("app.kubernetes.io/version") == version
        assert labels == {"app.kubernetes.io/name": "message-history-server"}
        if kind not in ("Deployment", "Service"):
            del item["metadata"]["labels"]
    annotations = objects["Deployment"]["spec"]["template"]["metadata"].pop("annotations")
    assert annotations.keys() == {"checksum/settings"}


def test_default_and_needed_values_render_the_base(tmp_path: Path) -> None:
    expected = kustomize(BASE)
    for container in containers(list(expected.values())):
        container["image"] += f":{service.__version__}"
    expected["ConfigMap"]["data"] |= NEEDED["settings"]
    rendered = render(tmp_path, **NEEDED)
    remove_what_only_helm_adds(rendered)
    assert rendered == expected


def test_values_of_the_readme_render_the_example_with_its_components(
    tmp_path: Path, example: Any
) -> None:
    expected = kustomize(copy_example(tmp_path / "kubernetes", COMPONENTS))
    del expected["Namespace"]
    for item in expected.values():
        assert item["metadata"].pop("namespace") == "history"
    rendered = render(tmp_path, **example, **WITH_COMPONENTS)
    remove_what_only_helm_adds(rendered)
    assert rendered == expected


def test_every_other_value_has_its_effect(tmp_path: Path, example: Any) -> None:
    example["image"]["tag"] = TAG
    example["settings"] |= {"HISTORY_PORT": 8080, "HISTORY_REQUIRE_HMAC": False}
    example["settings"] |= {"HISTORY_DRAIN_DELAY": "015s", "HISTORY_DRAIN_TIMEOUT": "2m"}
    example["ingress"] |= {"tlsSecret": "", "className": "other"}
    example["ingress"]["annotations"] = {
        "nginx.ingress.kubernetes.io/proxy-body-size": None,
        "other/annotation": "on",
    }
    pod_spec = {"nodeSelector": {"disk": "none"}, "imagePullSecrets": [{"name": "registry"}]}
    peers = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    rules = [{"ports": [{"port": 9000}]}]
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    objects = render(
        tmp_path,
        **example,
        secrets={"aws": "my-keys", "uploads": "my-tokens"},
        resources=resources,
        replicas=3,
        autoscaling={"enabled": False},
        networkPolicy={"from": peers, "egress": rules},
        sweep={"enabled": True, "schedule": "@daily", "resources": resources},
        serviceMonitor={"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}},
        podSpec=pod_spec,
        podLabels={"zone": "a"},
        podAnnotations={"note": "1"},
        labels={"team": "chat"},
        annotations={"owner": "me"},
    )
    assert all(item["metadata"]["labels"]["team"] == "chat" for item in objects.values())
    assert all(item["metadata"]["annotations"]["owner"] == "me" for item in objects.values())
    assert objects["ServiceMonitor"]["metadata"]["labels"]["release"] == "prometheus"
    assert objects["ServiceMonitor"]["spec"]["endpoints"][0]["interval"] == "1m"
    assert objects["ConfigMap"]["data"]["HISTORY_REQUIRE_HMAC"] == "false"
    assert objects["ConfigMap"]["data"]["HISTORY_PORT"] == "8080"
    assert objects["Deployment"]["spec"]["replicas"] == 3
    assert "HorizontalPodAutoscaler" not in objects
    assert "tls" not in objects["Ingress"]["spec"]
    assert objects["Ingress"]["spec"]["ingressClassName"] == "other"
    annotations = objects["Ingress"]["metadata"]["annotations"]
    assert annotations["other/annotation"] == "on"
    assert "nginx.ingress.kubernetes.io/proxy-body-size" not in annotations
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["ingress"][0]["from"] == peers
    assert rules[0] in policy["egress"]
    assert {"ports": [{"port": 443}]} not in policy["egress"]
    assert objects["CronJob"]["spec"]["schedule"] == "@daily"

    pod = objects["Deployment"]["spec"]["template"]
    sweep = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    for template in (pod, sweep):
        assert template["metadata"]["labels"]["zone"] == "a"
        assert template["metadata"]["annotations"]["note"] == "1"
        assert template["spec"].items() >= pod_spec.items()
        [container] = template["spec"]["containers"]
        assert container["image"] == f"registry.example.org/message-history-server:{TAG}"
        assert container["resources"] == resources
        secrets = [source["secretRef"]["name"] for source in container["envFrom"][1:]]
        assert secrets == ["my-keys", "my-tokens"]
    assert pod["spec"]["containers"][0]["ports"] == [{"name": "http", "containerPort": 8080}]
    needed = 15 + server.LAST_REQUESTS + 120 + background.CLOSE_TIMEOUT
    assert needed <= pod["spec"]["terminationGracePeriodSeconds"] < needed + 10

    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(
        yaml.dump_all(item for kind, item in objects.items() if kind != "ServiceMonitor")
    )
    result = run_tool("kubernetes-validate", "--strict", manifests)
    assert result.returncode == 0, result.stdout


def test_helm_3_renders_the_same_objects_as_helm_4(tmp_path: Path, example: Any) -> None:
    for values in (NEEDED, {**example, **WITH_COMPONENTS}):
        result = helm(tmp_path, "template", program="helm3", **values)
        assert (result.returncode, result.stderr) == (0, "")
        assert by_kind(result.stdout) == render(tmp_path, **values)


def test_changed_setting_starts_new_pods(tmp_path: Path, example: Any) -> None:
    before = render(tmp_path, **example)["Deployment"]
    example["settings"]["HISTORY_LOG_LEVEL"] = "debug"
    after = render(tmp_path, **example)["Deployment"]
    assert before["spec"]["template"] != after["spec"]["template"]


def test_ingress_and_network_policy_are_optional(tmp_path: Path, example: Any) -> None:
    example |= {"ingress": {"enabled": False}, "networkPolicy": {"enabled": False}}
    assert {"Ingress", "NetworkPolicy"}.isdisjoint(render(tmp_path, **example))


def test_helm_lint_accepts_the_chart(tmp_path: Path, example: Any) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.dump(example))
    result = run_tool("helm", "lint", "--strict", CHART, "--values", file)
    assert result.returncode == 0, result.stdout
    assert "WARNING" not in result.stdout


@pytest.mark.parametrize("program", ["helm", "helm3"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "settings.HISTORY_RECORDS=disk",
            "value must be one of 'tags', 'metadata'",
        ),
        ("settings.HISTORY_PORT=0", "HISTORY_PORT': minimum: got 0, want 1"),
        ("settings.AWS_SECRET_ACCESS_KEY=key", "properties 'AWS_SECRET_ACCESS_KEY' not allowed"),
        ("ingress.host=https://a.example", "/ingress/host': 'https://a.example' does not match"),
        ("replica=3", "additional properties 'replica' not allowed"),
    ],
)
def test_wrong_value_is_refused_with_a_message(
    tmp_path: Path, example: Any, program: str, change: str, message: str
) -> None:
    result = helm(tmp_path, "template", "--set", change, program=program, **example)
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr


def test_readme_shows_what_helm_prints_about_wrong_values(tmp_path: Path) -> None:
    page = (CHART / "README.md").read_text()
    [(arguments, output)] = re.findall(
        r"^\$ helm template history infra/helm ([^\n]*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    result = helm(tmp_path, "template", *arguments.split())
    assert sorted(result.stderr.strip().splitlines()) == sorted(output.splitlines())
