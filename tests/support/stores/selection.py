"""The stores that the tests run against."""

import pytest

QUICK_STORES = ("moto", "moto_metadata", "localstack", "ceph")
"""The stores that `make test` runs against."""

BUILT_STORES = ("minio", "versitygw", "seaweedfs", "garage")
"""The stores that have to be built, which takes minutes. `make soak` runs against them."""

METADATA_STORES = ("moto_metadata", "garage")
"""The stores on which records are in metadata."""

STORES = QUICK_STORES + BUILT_STORES
"""The names of the stores that the tests can start."""


def chosen_stores(variable: str) -> list[str]:
    """Parse the variable STORES. The default is `QUICK_STORES`. Raises `UsageError`."""
    names = variable.split(",") if variable else list(QUICK_STORES)
    if not set(STORES).issuperset(names):
        raise pytest.UsageError(f"STORES should be some of {','.join(STORES)}, not {variable}")
    return names


XDIST_GROUPS = {
    name: pytest.mark.xdist_group(name) for name in ("localstack", "ceph", *BUILT_STORES)
}
