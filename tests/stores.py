"""The S3 servers that tests can run against. None needs Docker, all keep to loopback.

Each runs until its block ends, on ports and in a directory of its own, so that several can run at
once. moto comes with the test requirements; the others raise `NotInstalled` where they are missing.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit
from uuid import uuid4

TESTS = Path(__file__).parent
CEPH_COMMANDS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")


@dataclass(frozen=True)
class Store:
    """An S3 server, and what it takes to use it."""

    name: str
    endpoint_url: str
    access_key: str = "test"
    secret_key: str = field(default="test", repr=False)
    region: str = "us-east-1"


class NotInstalled(Exception):
    """A store is not on this machine; the message tells how to get it."""


def from_environment() -> Store | None:
    """The store that AWS_ENDPOINT_URL_S3 names, if it does."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3")
    if not url:
        return None
    return Store(
        name="environment",
        endpoint_url=url,
        access_key=os.environ.get("AWS_ACCESS_KEY_ID", "test"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY", "test"),
        region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    )


def unreachable(store: Store) -> str | None:
    """Return a sentence if nothing accepts a connection at this store's endpoint."""
    address = urlsplit(store.endpoint_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        return (
            f"AWS_ENDPOINT_URL_S3 is {store.endpoint_url}, where no server can be reached "
            f"({error.strerror or error}): start it, or unset the variable to test with moto."
        )
    return None


@contextmanager
def moto() -> Iterator[Store]:
    """A server of moto's; all tests of one worker share its buckets."""
    with _Daemons() as daemons, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        launch = TESTS / "moto_launch.py"
        daemons.start(sys.executable, launch, listener.fileno(), keep=(listener.fileno(),))
        listener.close()
        daemons.wait_for(lambda: answers(port, "/"))
        yield Store("moto", f"http://127.0.0.1:{port}")


@contextmanager
def localstack() -> Iterator[Store]:
    """LocalStack's S3, from the virtual environment that `make localstack` makes."""
    python = localstack_python()
    with _Daemons() as daemons, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        daemons.environment |= {
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "LOCALSTACK_HOST": f"127.0.0.1:{port}",
            "GATEWAY_SERVER": "twisted",
            "SERVICES": "s3",
            "STRICT_SERVICE_LOADING": "1",
            "EAGER_SERVICE_LOADING": "1",
            # It takes a container for its own image, and then writes to /var/lib.
            "OVERRIDE_IN_DOCKER": "0",
            "FILESYSTEM_ROOT": str(daemons.directory),
            # Nothing of it needs the network.
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
            "LS_LOG": "warn",
        }
        launch = TESTS / "localstack_launch.py"
        daemons.start(python, launch, listener.fileno(), keep=(listener.fileno(),))
        listener.close()
        daemons.wait_for(lambda: answers(port, "/_localstack/health"))
        yield Store("localstack", f"http://127.0.0.1:{port}")


def localstack_python() -> Path:
    """The interpreter that it is installed for. Raises `NotInstalled`."""
    environment = Path(os.environ.get("LOCALSTACK_VENV") or TESTS.parent / ".venv-localstack")
    python = environment / "bin" / "python"
    if not python.exists():
        raise NotInstalled("LocalStack is not installed: run `make localstack`")
    return python


@contextmanager
def ministack() -> Iterator[Store]:
    """MiniStack, from the virtual environment that `make ministack` makes: it costs the least."""
    program = TESTS.parent / ".venv-ministack" / "bin" / "ministack"
    if not program.exists():
        raise NotInstalled("MiniStack is not installed: run `make ministack`")
    with _Daemons() as daemons:
        port = free_ports(1)[0]
        daemons.environment |= {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "SERVICES": "s3",
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
        }
        daemons.start(program)
        daemons.wait_for(lambda: answers(port, "/_ministack/health"))
        yield Store("ministack", f"http://127.0.0.1:{port}")


@contextmanager
def ceph(lifecycle_day_seconds: int = -1) -> Iterator[Store]:
    """Ceph's RADOS gateway on a cluster of one monitor and one OSD, in memory.

    A day of its lifecycle rules takes `lifecycle_day_seconds`, if positive: objects really expire.
    """
    if not all(map(shutil.which, CEPH_COMMANDS)):
        raise NotInstalled(
            "Ceph is not installed: apt-get install --no-install-recommends "
            "ceph-mon ceph-osd ceph-mgr radosgw ceph-common"
        )
    with _Daemons() as daemons:
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
        store = Store("ceph", f"http://127.0.0.1:{gateway}", "test", "testsecret")
        keys = ("--access-key", store.access_key, "--secret", store.secret_key)
        # This waits for the OSD to come up, and makes the pools.
        daemons.run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)
        daemons.start("radosgw", "-f", "-n", "client.rgw.a")
        daemons.wait_for(lambda: answers(gateway, "/"))
        yield store


def hasty_ceph() -> AbstractContextManager[Store]:
    """A Ceph whose lifecycle takes two seconds for a day."""
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
# Who asks for an OSD before it is up asks again after this; else after five seconds.
objecter_tick_interval = 0.1
rgw_rados_pool_pg_num_min = 8
rgw_run_sync_thread = false
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 5
"""
"""No keys, as it keeps to loopback; one copy of everything; no waits that only a cluster needs."""


class _Daemons:
    """A directory and processes that are gone after the block."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="store-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self._log = (self.directory / "output.log").open("wb")
        self._running: list[subprocess.Popen[bytes]] = []
        # Nothing of this process's own environment: neither AWS keys, nor a Python path or a proxy.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
        }
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):  # Each still has those it depends on.
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
        self._temporary.cleanup()

    def run(self, *command: object) -> None:
        """Runs a command to its end."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise self._failure(f"{command[0]} failed")

    def start(self, *command: object, keep: tuple[int, ...] = ()) -> None:
        """Starts a process that stays in the foreground; it inherits the descriptors to `keep`."""
        guard = []
        # Even SIGKILL for the tests then leaves no store behind. The signal is bound to the thread
        # that starts the process, so only the main one, which ends last, may ask for it.
        if shutil.which("setpriv") and threading.current_thread() is threading.main_thread():
            guard = ["setpriv", "--pdeathsig", "KILL", "--"]
        self._running.append(
            subprocess.Popen(
                [*guard, *map(str, command)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=keep,
                start_new_session=True,  # Ctrl-C is for the tests; they end what they started.
            )
        )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Polls for at most a minute, as long as all processes live."""
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                raise self._failure("The store does not answer")
            if any(process.poll() is not None for process in self._running):
                raise self._failure("The store has ended")
            time.sleep(0.05)

    def _failure(self, what: str) -> RuntimeError:
        output = (self.directory / "output.log").read_text(errors="replace")
        return RuntimeError(f"{what}. The end of its output:\n{output[-2000:]}")


def answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def free_ports(count: int) -> range:
    """Loopback ports in a row that are free, below those that connections are given."""
    for _ in range(100):
        # Not from a seed: tests that run elsewhere at the same time may have the same one.
        first = random.SystemRandom().randrange(10_000, 30_000, count)
        ports = range(first, first + count)
        try:
            for port in ports:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return ports
    raise RuntimeError("There are no free ports")


if __name__ == "__main__":
    chosen = from_environment()
    sys.exit(unreachable(chosen) if chosen else None)
