"""The objects of the example, as kustomize builds them."""

from typing import Any

import pytest

from service.settings import Settings, load
from tests.infra.kubernetes.manifests import COMPONENTS, EXAMPLE, build


@pytest.fixture
def objects() -> dict[str, Any]:
    """All objects of the example and its components, by kind. There is one object of each kind."""
    built = build(EXAMPLE, extra=tuple(COMPONENTS))
    by_kind = {item["kind"]: item for item in built}
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
    """The settings that the service in a pod reads from the ConfigMap."""
    for name, value in objects["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value)
    return load()
