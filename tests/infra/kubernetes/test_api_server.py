"""A real API server accepts the objects, and Helm can install, change and remove them.

The server is built from source, so these tests do not run in `make test`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infra.kubernetes.api_server import ApiServer, api_server
from tests.infra.kubernetes.manifests import BASE, COMPONENTS, EXAMPLE, Object, copy_example, read
from tests.infra.kubernetes.programs import example_values, helm, kustomize, render
from tests.infra.tools import run_tool

pytestmark = pytest.mark.soak

ALL_OPTIONS: dict[str, Any] = {"autoscaling": {"byMemory": True}, "sweep": {"enabled": True}}
"""Not the ServiceMonitor: only the Prometheus operator adds this kind to a cluster."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ApiServer]:
    """An API server with the namespace of the example."""
    with api_server() as running:
        running.apply(read(EXAMPLE / "namespace.yaml"), "history").raise_for_status()
        yield running


@pytest.fixture(params=["base", "example with components", "chart"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Object]:
    """The objects as each way to install them makes them."""
    match request.param:
        case "base":
            return kustomize(BASE)
        case "chart":
            return render(tmp_path, **example_values(), **ALL_OPTIONS)
    objects = kustomize(copy_example(tmp_path / "kubernetes", COMPONENTS))
    assert objects.pop("ServiceMonitor")
    return objects


def test_server_accepts_every_object(cluster: ApiServer, objects: dict[str, Object]) -> None:
    for kind, item in objects.items():
        response = cluster.apply(item, "history", dryRun="All")
        assert response.is_success, response.text
        assert "Warning" not in response.headers, kind
    objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["porst"] = []
    response = cluster.apply(objects["Deployment"], "history", dryRun="All")
    assert response.is_error
    assert "porst: field not declared in schema" in response.text


def test_restricted_namespace_accepts_the_pods(
    cluster: ApiServer, objects: dict[str, Object]
) -> None:
    cluster.apply(objects["ServiceAccount"], "history").raise_for_status()
    templates = [objects["Deployment"]["spec"]["template"]]
    if "CronJob" in objects:
        templates.append(objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"])
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] |= {"name": "pod"}
        assert cluster.apply(pod, "history", dryRun="All").is_success
        del pod["spec"]["securityContext"]["runAsNonRoot"]
        response = cluster.apply(pod, "history", dryRun="All")
        assert (response.status_code, "PodSecurity" in response.text) == (403, True)


def test_helm_installs_changes_and_removes_a_release(cluster: ApiServer, tmp_path: Path) -> None:
    access = ("--kubeconfig", cluster.kubeconfig, "--namespace", "releases")
    values: dict[str, Any] = {**example_values(), **ALL_OPTIONS}
    result = helm(tmp_path, "install", "--create-namespace", *access, **values)
    assert result.returncode == 0, result.stderr
    assert "kubectl -n releases rollout status deployment/history\n" in result.stdout
    deployment = "/apis/apps/v1/namespaces/releases/deployments/history"
    assert cluster.http.get(deployment).json()["spec"]["template"]["spec"]["containers"]
    values["autoscaling"] = {"enabled": False}
    result = helm(tmp_path, "upgrade", *access, **(values | {"replicas": 5}))
    assert result.returncode == 0, result.stderr
    assert cluster.http.get(deployment).json()["spec"]["replicas"] == 5
    result = run_tool("helm", "uninstall", "history", *access)
    assert result.returncode == 0, result.stderr
    assert cluster.http.get(deployment).status_code == 404
