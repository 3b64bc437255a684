"""The manifests are complete, valid and consistent."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli import main
from tests.infra.kubernetes.manifests import (
    COMPONENTS,
    DOCKERFILE,
    EXAMPLE,
    KUBERNETES,
    OLDEST_KUBERNETES,
    build,
    copy_example,
    read,
)
from tests.infra.tools import run_tool
from tests.support.repository import ROOT


def test_every_file_is_listed_in_a_kustomization() -> None:
    listed = set()
    for kustomization in KUBERNETES.glob("*/kustomization.yaml"):
        listed.add(kustomization)
        config, folder = read(kustomization), kustomization.parent
        names = [
            *config.get("resources", []),
            *(
                env
                for generator in config.get("configMapGenerator", [])
                for env in generator.get("envs", [])
            ),
            *(patch["path"] for patch in config.get("patches", []) if "path" in patch),
        ]
        listed |= {(folder / name).resolve() for name in names}
    files = {path for path in listed if path.is_file()}
    assert files == {path for path in KUBERNETES.rglob("*") if path.is_file()}
    assert listed - files == {KUBERNETES / "base"}


def test_example_lists_the_components_in_a_comment() -> None:
    """Removing the `#` signs turns the comment into the list of components."""
    text = (EXAMPLE / "kustomization.yaml").read_text()
    names = re.findall(r"^#   - (\S+) ", text, re.MULTILINE)
    assert [(EXAMPLE / name).resolve() for name in names] == COMPONENTS


@pytest.mark.parametrize("components", [[], COMPONENTS], ids=["plain", "with components"])
def test_kubectl_kustomize_builds_the_same_objects(components: list[Path], tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
    folder = copy_example(tmp_path / "kubernetes", components)
    result = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, check=True, text=True
    )
    without_hashes = re.sub(
        r"\bhistory-[0-9a-z]{10}$", "history", result.stdout, flags=re.MULTILINE
    )

    def sort(objects: Any) -> Any:
        return sorted(objects, key=lambda item: str(item["kind"]))

    assert sort(yaml.safe_load_all(without_hashes)) == sort(build(EXAMPLE, extra=tuple(components)))


@pytest.mark.parametrize("options", [("-k", OLDEST_KUBERNETES), ()], ids=["oldest", "newest"])
def test_objects_match_the_kubernetes_schemas(
    objects: dict[str, Any], options: tuple[str, ...], tmp_path: Path
) -> None:
    assert objects.pop("ServiceMonitor")["apiVersion"] == "monitoring.coreos.com/v1"
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(yaml.dump_all(objects.values()))
    result = run_tool("kubernetes-validate", "--strict", *options, manifests)
    assert result.returncode == 0, result.stdout + result.stderr
    # For an unknown kind, kubernetes-validate only prints a warning.
    passed = re.findall(r"^INFO .* passed for resource (\w+)/", result.stdout, re.MULTILINE)
    assert sorted(passed) == sorted(kind.lower() for kind in objects), result.stdout


def test_selectors_match_the_labels(objects: dict[str, Any], pod: Any) -> None:
    labels = pod["metadata"]["labels"].items()
    spread = pod["spec"]["topologySpreadConstraints"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in spread),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    [expression] = objects["NetworkPolicy"]["spec"]["podSelector"]["matchExpressions"]
    sweep = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    names = [item["metadata"]["labels"][expression["key"]] for item in (pod, sweep)]
    assert (expression["operator"], expression["values"]) == ("In", names)
    monitored = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored
    assert monitored.items() <= objects["Service"]["metadata"]["labels"].items()


def test_objects_refer_to_each_other_by_the_right_names(
    objects: dict[str, Any], pod: Any, container: Any
) -> None:
    deployment = objects["Deployment"]
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]
    assert pod["spec"]["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    assert container["envFrom"][0]["configMapRef"] == {
        "name": objects["ConfigMap"]["metadata"]["name"]
    }
    secrets = [source["secretRef"] for source in container["envFrom"][1:]]
    page = (ROOT / "infra" / "README.md").read_text()
    assert all(secret["optional"] and f"`{secret['name']}`" in page for secret in secrets)
    assert len(secrets) == 2
    namespace = objects.pop("Namespace")["metadata"]["name"]
    assert {item["metadata"]["namespace"] for item in objects.values()} == {namespace}
    assert container["image"].rpartition(":")[0].endswith("/message-history-server")
    # The Prometheus operator names the job after the Service.
    alerts = (ROOT / "infra" / "prometheus" / "alerts.yaml").read_text()
    assert set(re.findall('job="(.*?)"', alerts)) == {objects["Service"]["metadata"]["name"]}


def test_scaling_uses_the_metric_of_the_adapter(objects: dict[str, Any]) -> None:
    cpu, memory = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    [rule] = read(ROOT / "infra" / "prometheus" / "adapter.yaml")
    assert memory["pods"]["metric"]["name"] == rule["name"]["as"]
    # Without the component, scaling does not need the adapter.
    [autoscaler] = (item for item in build(EXAMPLE) if item["kind"] == "HorizontalPodAutoscaler")
    assert autoscaler["spec"]["metrics"] == [cpu]


def test_readme_commands_match_the_manifests(objects: dict[str, Any], container: Any) -> None:
    page = (ROOT / "infra" / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(docker .*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    [commands] = [block for block in blocks if "kubectl" in block]
    paths = re.findall(r"\binfra/\S+", commands)
    assert [ROOT / path for path in paths] == [ROOT / "infra" / "Dockerfile", EXAMPLE]
    assert set(re.findall(r"registry\S+", commands)) == {container["image"]}
    namespace = objects["Namespace"]["metadata"]["name"]
    assert set(re.findall(r"kubectl -n (\S+)", page)) == {namespace}
    assert objects["Ingress"]["spec"]["tls"][0]["secretName"] in commands
    assert f"deployment/{objects['Deployment']['metadata']['name']}" in commands
    assert f"Kubernetes {OLDEST_KUBERNETES} or newer" in page
    [(program, command)] = re.findall(r"-- (.*) (\S+)$", commands, flags=re.MULTILINE)
    assert f"ENTRYPOINT {json.dumps(program.split())}" in DOCKERFILE
    assert command in main.commands
