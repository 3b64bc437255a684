"""How a service or a test gets at a store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.support.stores import Store


def aws_client(store: Store, name: str, config: Config | None = None) -> Any:
    """Return boto3's client of an AWS service that this store, such as moto, has."""
    return boto3.client(
        name,
        endpoint_url=store.endpoint_url,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name=store.region,
        config=config,
    )


def s3_client(store: Store) -> Any:
    """A client of another make than the service's, to look behind it."""
    return aws_client(store, "s3", Config(request_checksum_calculation="when_required"))


@contextmanager
def aws_environment(store: Store, endpoint_url: str | None = None) -> Iterator[dict[str, str]]:
    """The variables through which a service finds its store, in this process for a while."""
    variables = {
        "AWS_ENDPOINT_URL_S3": endpoint_url or store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "AWS_DEFAULT_REGION": store.region,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables
