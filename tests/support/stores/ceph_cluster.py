"""Ceph's RADOS gateway, with the smallest possible cluster."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from uuid import uuid4

from tests.support.stores.daemons import Daemons, free_ports, responds_ok
from tests.support.stores.store import NotInstalled, Store

CEPH_COMMANDS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")


@contextmanager
def ceph(lifecycle_day_seconds: int = -1) -> Iterator[Store]:
    """Start Ceph's RADOS gateway on a cluster of one monitor and one OSD, in memory.

    If `lifecycle_day_seconds` is positive, lifecycle rules count that many seconds as a day, so
    that tests can wait until objects expire.
    """
    if not all(map(shutil.which, CEPH_COMMANDS)):
        raise NotInstalled(
            "Ceph is not installed: apt-get install --no-install-recommends "
            "ceph-mon ceph-osd ceph-mgr radosgw ceph-common"
        )
    with Daemons() as daemons:
        ports = free_ports(16)
        cluster, osd = str(uuid4()), str(uuid4())
        monitor = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
        gateway = ports[2]
        home = daemons.directory
        (home / "ceph.conf").write_text(
            CEPH_CONF.format(
                cluster=cluster,
                monitor=monitor,
                gateway=gateway,
                first=ports[3],
                last=ports[-1],
                home=home,
                day=lifecycle_day_seconds,
            )
        )
        daemons.environment["CEPH_CONF"] = str(home / "ceph.conf")
        for name in ("mon", "osd", "rgw"):
            (home / name).mkdir()
        daemons.run(
            "monmaptool", "--create", "--fsid", cluster, "--addv", "a", monitor, home / "monmap"
        )
        daemons.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", home / "monmap")
        daemons.start("ceph-mon", "-f", "-i", "a")
        daemons.run("ceph", "--connect-timeout", 30, "osd", "new", osd)
        daemons.run("ceph-osd", "--mkfs", "-i", 0, "--osd-uuid", osd)
        daemons.start("ceph-osd", "-f", "-i", 0)
        store = Store(
            *("ceph", f"http://127.0.0.1:{gateway}", "test", "testsecret"),
            lacks=frozenset({"encryption", "region"}),
        )
        keys = ("--access-key", store.access_key, "--secret", store.secret_key)
        # This waits until the OSD is up, and creates the pools.
        daemons.run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)
        daemons.start("radosgw", "-f", "-n", "client.rgw.a")
        daemons.wait_until(lambda: responds_ok(gateway, "/"))
        yield store


def ceph_with_short_days() -> AbstractContextManager[Store]:
    """Start a Ceph whose lifecycle rules count two seconds as a day."""
    return ceph(lifecycle_day_seconds=2)


CEPH_CONF = """
[global]
fsid = {cluster}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
ms_bind_port_min = {first}
ms_bind_port_max = {last}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {home}
crash_dir = {home}
admin_socket =
log_file = {home}/$name.log
mon_cluster_log_file = {home}/cluster.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
[mon]
mon_data = {home}/mon
mon_data_avail_warn = 1
mon_data_avail_crit = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[osd]
osd_data = {home}/osd
osd_objectstore = memstore
memstore_device_bytes = 8589934592
[client]
ms_mon_client_mode = crc
rgw_data = {home}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_lc_debug_interval = {day}
# How often a request for an OSD that is not up yet is retried. The default is five seconds.
objecter_tick_interval = 0.1
rgw_rados_pool_pg_num_min = 8
rgw_run_sync_thread = false
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 5
"""
"""No authentication, because it listens only on loopback. One copy of all data. Short waits."""
