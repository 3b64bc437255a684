"""The fault proxy, and S3 clients that use it or bypass it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import boto3
import pytest

from tests.s3.fault_proxy.scripted_store import OBJECT, client_options
from tests.support.proxy import Proxy
from tests.support.stores import Store


@pytest.fixture(scope="package")
def moto(get_store: Callable[[str], Store]) -> Store:
    return get_store("moto")


@pytest.fixture(scope="package")
def direct_s3(moto: Store) -> Iterator[Any]:
    """A client that bypasses the proxy. It has put an object that everyone may read."""
    with closing(boto3.client(**client_options(moto.endpoint_url))) as s3:
        s3.create_bucket(Bucket="bucket", ACL="public-read-write")
        s3.put_object(Bucket="bucket", Key="object", Body=OBJECT, ACL="public-read")
        yield s3


@pytest.fixture
def proxy(moto: Store, direct_s3: Any) -> Iterator[Proxy]:
    with Proxy(moto.endpoint_url) as fault_proxy:
        yield fault_proxy


@pytest.fixture
def s3(proxy: Proxy) -> Iterator[Any]:
    with closing(boto3.client(**client_options(proxy.url))) as client:
        yield client
