"""The S3 servers that tests can run against. None needs Docker, and all listen only on loopback.

Each is a context manager and has its own ports and directory, so several can run at once. moto is
in the test requirements. The others raise `NotInstalled` if they are missing.
"""

from tests.support.stores.built import garage, minio, seaweedfs, versitygw
from tests.support.stores.ceph_cluster import ceph, ceph_with_short_days
from tests.support.stores.daemons import free_ports, responds_ok
from tests.support.stores.servers import (
    localstack,
    localstack_python,
    ministack,
    moto,
    moto_metadata,
)
from tests.support.stores.store import NotInstalled, Store, connection_problem, from_environment

__all__ = [
    "NotInstalled",
    "Store",
    "ceph",
    "ceph_with_short_days",
    "connection_problem",
    "free_ports",
    "from_environment",
    "garage",
    "localstack",
    "localstack_python",
    "minio",
    "ministack",
    "moto",
    "moto_metadata",
    "responds_ok",
    "seaweedfs",
    "versitygw",
]
