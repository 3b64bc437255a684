"""Which stores the tests run against."""

import pytest

STORES = ("moto", "localstack", "ceph")
"""The names of the stores that the tests can start."""


def chosen_stores(variable: str) -> list[str]:
    """Read the variable STORES: all stores if it is empty. Raises `UsageError`."""
    names = variable.split(",") if variable else list(STORES)
    if not set(STORES).issuperset(names):
        raise pytest.UsageError(f"STORES is some of {','.join(STORES)}, not {variable}")
    return names


GROUPS = {name: pytest.mark.xdist_group(name) for name in ("localstack", "ceph")}
