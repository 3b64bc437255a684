"""An engine, the images and the Compose project, each started once for all tests that need it."""

from collections.abc import Iterator

import pytest

from tests.infra.containers.compose import Project, running_project
from tests.infra.containers.engine import Engine, running_engine
from tests.infra.containers.stand_ins import LOCALSTACK, NGINX, PYTHON, provide
from tests.support.stores import NotInstalled

IMAGE = "message-history-server"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine. Without one, the tests are skipped."""
    try:
        with running_engine() as engine:
            yield engine
    except NotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The name of the image, which is built from infra/Dockerfile."""
    _provide(engine, PYTHON)
    engine.build(IMAGE)
    return IMAGE


@pytest.fixture(scope="session")
def dev_image(engine: Engine, image: str) -> str:
    """The name of the image with the embedded store."""
    engine.build(f"{image}:dev", "--target=dev")
    return f"{image}:dev"


@pytest.fixture(scope="session")
def project(
    engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """All services of localstack.yml."""
    _provide(engine, NGINX)
    _provide(engine, LOCALSTACK)
    with running_project(engine, tmp_path_factory.mktemp("compose")) as project:
        yield project


def _provide(engine: Engine, name: str) -> None:
    try:
        provide(engine, name)
    except NotInstalled as error:
        pytest.skip(str(error))
