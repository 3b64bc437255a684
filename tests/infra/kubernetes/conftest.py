"""The example's objects, as kustomize makes them."""

from typing import Any

import pytest

from service.settings import Settings, load
from tests.infra.kubernetes.manifests import COMPONENTS, EXAMPLE, build


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
