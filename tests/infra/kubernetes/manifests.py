"""The manifests, and kustomize's work on them in Python."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from service.http.routes import ROUTES
from tests.support.repository import ROOT

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


def paths() -> set[str]:
    return {route.path for route in ROUTES}
