"""What is applied to a cluster is whole, is what Kubernetes takes, and fits the service."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import background, client, server, storage
from service.api import ROUTES
from service.cli import main
from service.settings import Settings, load
from tests.conftest import run_tool
from tests.test_infra import ROOT

KUBERNETES = ROOT / "infra" / "kubernetes"
EXAMPLE = KUBERNETES / "example"
COMPONENTS = [KUBERNETES / "monitoring", KUBERNETES / "scaling-by-memory"]
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()
OLDEST = "1.27"
"""The oldest Kubernetes that is served; the newest is what kubernetes-validate takes by itself."""

Object = dict[str, Any]


class StrictLoader(yaml.SafeLoader):
    """As Kubernetes reads it: a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), (node.start_mark, keys)
        return super().construct_mapping(node, deep=deep)


def read(path: Path) -> Any:
    return yaml.load(path.read_text(), StrictLoader)


def build(folder: Path, below: list[Object] | None = None, extra: tuple[Path, ...] = ()) -> Any:
    """What `kubectl kustomize` makes of a folder, with as much of kustomize as is used here.

    `below` is what a component is laid over, `extra` are components beside those listed.
    """
    config, objects = read(folder / "kustomization.yaml"), list(below or [])
    assert config.pop("kind") == ("Kustomization" if below is None else "Component")
    assert config.pop("apiVersion").startswith("kustomize.config.k8s.io/v1")
    for name in config.pop("resources", []):
        path = (folder / name).resolve()
        assert not folder.is_relative_to(path), "kustomize takes no folder that it stands in"
        objects += build(path) if path.is_dir() else [read(path)]
    for component in (*(folder / name for name in config.pop("components", [])), *extra):
        objects = build(component, objects)
    for generator in config.pop("configMapGenerator", []):
        generate(objects, folder, generator)
    for patch in config.pop("patches", []):
        [target] = (found for found in objects if matches(found, **patch["target"]))
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
        for operation in yaml.load(text, StrictLoader):
            change(target, **operation)
    namespace = config.pop("namespace", None)
    for found in objects:
        if namespace and found["kind"] != "Namespace":
            found["metadata"]["namespace"] = namespace
    for image in config.pop("images", []):
        renamed = [found for found in containers(objects) if found["image"] == image["name"]]
        assert renamed
        for container in renamed:
            container["image"] = f"{image['newName']}:{image['newTag']}"
    assert not config, "this reader does not know these"
    return objects


def generate(objects: list[Object], folder: Path, generator: Any) -> None:
    """A ConfigMap, or more for one that is there; without the hash at the end of its name."""
    config = {"behavior": "create", "envs": [], "literals": [], **generator}
    lines = [line for env in config["envs"] for line in (folder / env).read_text().splitlines()]
    lines = [*(line for line in lines if not line.startswith("#")), *config["literals"]]
    name, data = config["name"], dict(line.split("=", maxsplit=1) for line in lines)
    if config["behavior"] == "create":
        made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        objects.append(made)
        return
    assert config["behavior"] == "merge"
    [merged] = (found for found in objects if matches(found, "ConfigMap", name))
    merged["data"] |= data


def matches(found: Object, kind: str, name: str) -> bool:
    return (found["kind"], found["metadata"]["name"]) == (kind, name)


def change(target: Any, op: str, path: str, value: Any) -> None:
    """One operation of a JSON patch (RFC 6902)."""
    *way, last = (int(step) if step.isdigit() else step for step in path.split("/")[1:])
    for step in way:
        target = target[step]
    if last == "-":
        assert op == "add"
        target.append(value)
    else:
        assert op == "add" or (op == "replace" and target[last])
        target[last] = value


def containers(objects: list[Object]) -> Iterator[Any]:
    for found in objects:
        if found["kind"] == "Deployment":
            yield from found["spec"]["template"]["spec"]["containers"]


@pytest.fixture
def objects() -> dict[str, Any]:
    """Everything there is to apply, by its kind, of which there is one each."""
    built = build(EXAMPLE, extra=tuple(COMPONENTS))
    by_kind = {found["kind"]: found for found in built}
    assert len(by_kind) == len(built)
    return by_kind


@pytest.fixture
def pod(objects: dict[str, Any]) -> Any:
    return objects["Deployment"]["spec"]["template"]


@pytest.fixture
def container(pod: Any) -> Any:
    [container] = pod["spec"]["containers"]
    return container


@pytest.fixture
def settings(objects: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As a pod's process reads them."""
    for name, value in objects["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value)
    return load()


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


def test_ports(objects: dict[str, Any], container: Any, settings: Settings) -> None:
    [port] = container["ports"]
    assert port["containerPort"] == settings.port
    assert f"EXPOSE {settings.port}\n" in DOCKERFILE
    [service] = objects["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    [inward] = objects["NetworkPolicy"]["spec"]["ingress"]
    assert inward["ports"] == [{"port": port["name"]}]
    [endpoint] = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]
    assert endpoint["path"] in paths()
    for path in objects["Ingress"]["spec"]["rules"][0]["http"]["paths"]:
        assert path["backend"]["service"] == {
            "name": objects["Service"]["metadata"]["name"],
            "port": {"name": service["name"]},
        }


def paths() -> set[str]:
    return {route.path for route in ROUTES}


def test_probes(container: Any) -> None:
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    asked = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert asked == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(asked.values()) <= paths()
    port = container["ports"][0]["name"]
    assert all(probe["httpGet"]["port"] == port for probe in probes.values())
    assert probes["readiness"]["timeoutSeconds"] > storage.PROBE_TIMEOUT


def test_the_ingress_exposes_the_contract_alone(objects: dict[str, Any]) -> None:
    [rule] = objects["Ingress"]["spec"]["rules"]
    assert objects["Ingress"]["spec"]["tls"][0]["hosts"] == [rule["host"]]

    def exposed(path: str) -> bool:
        return any(
            path == one["path"]
            or (one["pathType"] == "Prefix" and path.startswith(f"{one['path'].rstrip('/')}/"))
            for one in rule["http"]["paths"]
        )

    assert {path for path in paths() if not exposed(path)} == {"/readyz", "/metrics"}


def test_the_ingress_lets_bundles_through(objects: dict[str, Any], settings: Settings) -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    notes = {
        name.removeprefix(prefix): value
        for name, value in objects["Ingress"]["metadata"]["annotations"].items()
    }
    longest = client.CALL_TIMEOUT + settings.part_size / client.SLOWEST
    assert int(notes.pop("proxy-read-timeout")) > longest
    assert int(notes.pop("proxy-send-timeout")) > longest
    assert notes == {
        "proxy-request-buffering": "off",
        "proxy-buffering": "off",
        "proxy-body-size": "0",
        "proxy-connect-timeout": "5",
        "ssl-redirect": "false",
        "enable-access-log": "false",
    }


def test_settings(objects: dict[str, Any], settings: Settings) -> None:
    for name in objects["ConfigMap"]["data"]:
        assert name.startswith("AWS_") or (
            name.startswith("HISTORY_")
            and name.removeprefix("HISTORY_").lower() in Settings.model_fields
        )
    assert settings.bucket == "my-histories"


def test_a_pod_has_time_to_drain(pod: Any, container: Any, settings: Settings) -> None:
    drained = settings.drain_delay + server.LAST_CALL + settings.drain_timeout
    assert pod["spec"]["terminationGracePeriodSeconds"] >= drained + background.CLEANUP_TIMEOUT
    # A hook would have to be counted.
    assert "lifecycle" not in container


def test_updates_never_lack_a_replica(objects: dict[str, Any]) -> None:
    rolling = objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}
    assert objects["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > 1
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_a_pod_has_the_memory_that_the_service_may_take(container: Any, settings: Settings) -> None:
    memory = container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["memory"] == memory
    assert int(memory.removesuffix("Mi")) << 20 >= settings.memory_budget + (160 << 20)


def test_nobodys_rights(objects: dict[str, Any], pod: Any, container: Any) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, flags=re.MULTILINE)
    assert user
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[2]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    # Else a Service called history sets HISTORY_PORT.
    assert pod["spec"]["enableServiceLinks"] is False
    assert objects["Namespace"]["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }


def test_who_may_talk_to_whom(objects: dict[str, Any]) -> None:
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    name = "kubernetes.io/metadata.name"
    [inward] = policy["ingress"]
    sources = [source["namespaceSelector"]["matchLabels"][name] for source in inward["from"]]
    assert sources == ["ingress-nginx", "monitoring"]
    outward = {port["port"]: rule.get("to") for rule in policy["egress"] for port in rule["ports"]}
    assert outward == {53: None, 443: None, 80: [{"ipBlock": {"cidr": "169.254.170.23/32"}}]}


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
