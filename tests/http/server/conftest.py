"""A replica whose settings a test chooses with `replica.settings`."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.server.replica import Replica
from tests.support.services.process import COVERAGE_VARIABLES, service_process_for
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket


@pytest.fixture
def replica(store: Store, s3: Any, request: pytest.FixtureRequest) -> Iterator[Replica]:
    bucket = new_bucket(s3)
    settings = {"HISTORY_PART_SIZE": "5MiB", **request.param}
    with service_process_for(store, bucket, **COVERAGE_VARIABLES, **settings) as (url, process):
        yield Replica(url, process, bucket, s3)
