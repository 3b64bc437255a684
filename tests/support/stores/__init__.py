"""The S3 servers that tests can run against. None needs Docker, all keep to loopback.

Each runs until its block ends, on ports and in a directory of its own, so that several can run at
once. moto comes with the test requirements; the others raise `NotInstalled` where they are missing.
"""

from tests.support.stores.ceph_cluster import ceph, hasty_ceph
from tests.support.stores.daemons import answers, free_ports
from tests.support.stores.servers import localstack, localstack_python, ministack, moto
from tests.support.stores.store import NotInstalled, Store, from_environment, unreachable

__all__ = [
    "NotInstalled",
    "Store",
    "answers",
    "ceph",
    "free_ports",
    "from_environment",
    "hasty_ceph",
    "localstack",
    "localstack_python",
    "ministack",
    "moto",
    "unreachable",
]
