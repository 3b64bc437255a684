"""Clients of a store, and the environment variables with which a service uses it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.support.stores import Store


def aws_client(store: Store, name: str, config: Config | None = None) -> Any:
    """Return a boto3 client for an AWS service. Some stores, such as moto, have more than S3."""
    return boto3.client(
        name,
        endpoint_url=store.endpoint_url,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name=store.region,
        config=config,
    )


def s3_client(store: Store) -> Any:
    """Return a client to inspect what the service stored. The service uses another S3 library."""
    return aws_client(store, "s3", Config(request_checksum_calculation="when_required"))


@contextmanager
def aws_environment(store: Store, endpoint_url: str | None = None) -> Iterator[dict[str, str]]:
    """Set the variables with which a service uses this store, in this process. Yield them."""
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
