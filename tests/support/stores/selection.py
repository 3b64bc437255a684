"""The stores that the tests run against."""

import pytest

STORES = ("moto", "localstack", "ceph")
"""The names of the stores that the tests can start."""


def chosen_stores(variable: str) -> list[str]:
    """Parse the variable STORES. If it is empty, return all stores. Raises `UsageError`."""
    names = variable.split(",") if variable else list(STORES)
    if not set(STORES).issuperset(names):
        raise pytest.UsageError(f"STORES should be some of {','.join(STORES)}, not {variable}")
    return names


XDIST_GROUPS = {name: pytest.mark.xdist_group(name) for name in ("localstack", "ceph")}
