"""The manifests, and a Python implementation of the part of kustomize that they use."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from service.http.routes import ROUTES
from tests.support.repository import ROOT

KUBERNETES = ROOT / "infra" / "kubernetes"
BASE = KUBERNETES / "base"
EXAMPLE = KUBERNETES / "example"
COMPONENTS = [KUBERNETES / name for name in ("monitoring", "scaling-by-memory", "sweeping")]
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()
OLDEST_KUBERNETES = "1.27"
"""The oldest supported Kubernetes. The newest is the default of kubernetes-validate."""

Object = dict[str, Any]


class StrictLoader(yaml.SafeLoader):
    """Reads YAML as Kubernetes does: a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), (node.start_mark, keys)
        return super().construct_mapping(node, deep=deep)


def read(path: Path) -> Any:
    return yaml.load(path.read_text(), StrictLoader)


def build(folder: Path, base: list[Object] | None = None, extra: tuple[Path, ...] = ()) -> Any:
    """Build a folder as `kubectl kustomize` does.

    For a component, `base` holds the objects that it changes. `extra` holds components that the
    folder does not list.
    """
    config, objects = read(folder / "kustomization.yaml"), list(base or [])
    assert config.pop("kind") == ("Kustomization" if base is None else "Component")
    assert config.pop("apiVersion").startswith("kustomize.config.k8s.io/v1")
    for name in config.pop("resources", []):
        path = (folder / name).resolve()
        assert not folder.is_relative_to(path), "kustomize accepts no parent folder as a resource"
        objects += build(path) if path.is_dir() else [read(path)]
    for component in (*(folder / name for name in config.pop("components", [])), *extra):
        objects = build(component, objects)
    for generator in config.pop("configMapGenerator", []):
        generate_config_map(objects, folder, generator)
    for patch in config.pop("patches", []):
        [target] = (item for item in objects if matches(item, **patch["target"]))
        text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
        for operation in yaml.load(text, StrictLoader):
            apply_operation(target, **operation)
    namespace = config.pop("namespace", None)
    for item in objects:
        if namespace and item["kind"] != "Namespace":
            item["metadata"]["namespace"] = namespace
    for image in config.pop("images", []):
        users = [item for item in containers(objects) if item["image"] == image["name"]]
        assert users
        for container in users:
            container["image"] = f"{image['newName']}:{image['newTag']}"
    assert not config, "build does not support these fields"
    return objects


def copy_example(target: Path, components: list[Path]) -> Path:
    """Copy all manifests, for a program that builds the example with these components."""
    shutil.copytree(KUBERNETES, target)
    listed = "".join(f"  - ../{path.name}\n" for path in components)
    with (target / "example" / "kustomization.yaml").open("a") as file:
        file.write(f"components:\n{listed}" if listed else "")
    return target / "example"


def generate_config_map(objects: list[Object], folder: Path, generator: Any) -> None:
    """Add a ConfigMap, or merge into an existing one. The name gets no hash at its end."""
    config = {"behavior": "create", "envs": [], "literals": [], **generator}
    lines = [line for env in config["envs"] for line in (folder / env).read_text().splitlines()]
    lines = [*(line for line in lines if not line.startswith("#")), *config["literals"]]
    name, data = config["name"], dict(line.split("=", maxsplit=1) for line in lines)
    if config["behavior"] == "create":
        metadata = {"name": name}
        objects.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        )
        return
    assert config["behavior"] == "merge"
    [config_map] = (item for item in objects if matches(item, "ConfigMap", name))
    config_map["data"] |= data


def matches(item: Object, kind: str, name: str) -> bool:
    return (item["kind"], item["metadata"]["name"]) == (kind, name)


def apply_operation(target: Any, op: str, path: str, value: Any) -> None:
    """Apply one operation of a JSON patch (RFC 6902)."""
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("/")[1:])
    for key in parents:
        target = target[key]
    if last == "-":
        assert op == "add"
        target.append(value)
    else:
        assert op == "add" or (op == "replace" and target[last])
        target[last] = value


def containers(objects: list[Object]) -> Iterator[Any]:
    for item in objects:
        if item["kind"] == "Deployment":
            yield from item["spec"]["template"]["spec"]["containers"]
        elif item["kind"] == "CronJob":
            yield from item["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]


def route_paths() -> set[str]:
    return {route.path for route in ROUTES}
