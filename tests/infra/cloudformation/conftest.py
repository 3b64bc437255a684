"""The template of the service, with its parameters."""

import pytest

from tests.infra.cloudformation.templates import BUCKET_TEMPLATE, Template


@pytest.fixture
def service_template() -> Template:
    return Template("service", imports=BUCKET_TEMPLATE.exports(), BucketStack="history", Tag="1")
