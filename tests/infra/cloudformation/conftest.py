"""The service's template as it is deployed."""

import pytest

from tests.infra.cloudformation.templates import PAIR, Template


@pytest.fixture
def service_template() -> Template:
    return Template("service", imports=PAIR.exports(), BucketStack="history", Tag="1")
