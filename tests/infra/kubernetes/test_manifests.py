"""The manifests are whole and valid."""

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
    OLDEST,
    build,
    read,
)
from tests.infra.tools import run_tool
from tests.support.repository import ROOT


def test_every_file_is_listed() -> None:
    listed = set()
    for kustomization in KUBERNETES.glob("*/kustomization.yaml"):
        listed.add(kustomization)
        config, folder = read(kustomization), kustomization.parent
        names = [
            *config.get("resources", []),
            *(env for one in config.get("configMapGenerator", []) for env in one.get("envs", [])),
            *(patch["path"] for patch in config.get("patches", []) if "path" in patch),
        ]
        listed |= {(folder / name).resolve() for name in names}
    files = {path for path in listed if path.is_file()}
    assert files == {path for path in KUBERNETES.rglob("*") if path.is_file()}
    assert listed - files == {KUBERNETES / "base"}


def test_the_example_names_the_components() -> None:
    """They stand there as a comment: what takes that away makes a list of these."""
    text = (EXAMPLE / "kustomization.yaml").read_text()
    offered = re.findall(r"^#   - (\S+) ", text, re.MULTILINE)
    assert [(EXAMPLE / name).resolve() for name in offered] == COMPONENTS


@pytest.mark.parametrize("components", [[], COMPONENTS], ids=["plain", "with components"])
def test_kustomize_makes_the_same_of_it(components: list[Path], tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy)
    listed = "".join(f"  - ../{path.name}\n" for path in components)
    with (copy / "example" / "kustomization.yaml").open("a") as file:
        file.write(f"components:\n{listed}" if listed else "")
    made = subprocess.run(
        [kubectl, "kustomize", copy / "example"], capture_output=True, check=True, text=True
    )
    hashed = re.sub(r"\bhistory-[0-9a-z]{10}$", "history", made.stdout, flags=re.MULTILINE)

    def sort(objects: Any) -> Any:
        return sorted(objects, key=lambda found: str(found["kind"]))

    assert sort(yaml.safe_load_all(hashed)) == sort(build(EXAMPLE, extra=tuple(components)))


@pytest.mark.parametrize("options", [("-k", OLDEST), ()], ids=["oldest", "newest"])
def test_kubernetes_knows_every_field(
    objects: dict[str, Any], options: tuple[str, ...], tmp_path: Path
) -> None:
    assert objects.pop("ServiceMonitor")["apiVersion"] == "monitoring.coreos.com/v1"
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(yaml.dump_all(objects.values()))
    said = run_tool("kubernetes-validate", "--strict", *options, manifests)
    assert said.returncode == 0, said.stdout + said.stderr
    # Of a kind that it does not know it only warns.
    passed = re.findall(r"^INFO .* passed for resource (\w+)/", said.stdout, re.MULTILINE)
    assert sorted(passed) == sorted(kind.lower() for kind in objects), said.stdout


def test_labels_and_selectors(objects: dict[str, Any], pod: Any) -> None:
    labels = pod["metadata"]["labels"].items()
    spread = pod["spec"]["topologySpreadConstraints"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in spread),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    monitored = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored
    assert monitored.items() <= objects["Service"]["metadata"]["labels"].items()


def test_names(objects: dict[str, Any], pod: Any, container: Any) -> None:
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
    namespace = objects.pop("Namespace")["metadata"]["name"]
    assert {found["metadata"]["namespace"] for found in objects.values()} == {namespace}
    assert container["image"].rpartition(":")[0].endswith("/message-history-server")
    # The operator calls the job like the Service.
    alerts = (ROOT / "infra" / "prometheus" / "alerts.yaml").read_text()
    assert set(re.findall('job="(.*?)"', alerts)) == {objects["Service"]["metadata"]["name"]}


def test_scaling_asks_for_what_the_adapter_answers(objects: dict[str, Any]) -> None:
    cpu, memory = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    [rule] = read(ROOT / "infra" / "prometheus" / "adapter.yaml")
    assert memory["pods"]["metric"]["name"] == rule["name"]["as"]
    # Without the adapter nobody is asked for it.
    [plain] = (found for found in build(EXAMPLE) if found["kind"] == "HorizontalPodAutoscaler")
    assert plain["spec"]["metrics"] == [cpu]


def test_the_readme_applies_what_is_here(objects: dict[str, Any], container: Any) -> None:
    page = (ROOT / "infra" / "README.md").read_text()
    [commands] = re.findall(r"^```sh\n(docker .*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"\binfra/\S+", commands)
    assert [ROOT / name for name in named] == [ROOT / "infra" / "Dockerfile", EXAMPLE]
    assert set(re.findall(r"registry\S+", commands)) == {container["image"]}
    namespace = objects["Namespace"]["metadata"]["name"]
    assert set(re.findall(r"kubectl -n (\S+)", page)) == {namespace}
    assert objects["Ingress"]["spec"]["tls"][0]["secretName"] in commands
    assert f"deployment/{objects['Deployment']['metadata']['name']}" in commands
    assert f"Kubernetes {OLDEST} or newer" in page
    [(program, command)] = re.findall(r"-- (.*) (\S+)$", commands, flags=re.MULTILINE)
    assert f"ENTRYPOINT {json.dumps(program.split())}" in DOCKERFILE
    assert command in main.commands
