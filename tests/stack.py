"""What localstack.yml runs in containers, as plain processes: `make stack`.

LocalStack, `init-bucket`, two replicas, and nginx with the very same infra/nginx/nginx.conf. All
settings of the environment are the replicas'; HISTORY_HOST and HISTORY_PORT are nginx's. SIGTERM or
Ctrl-C stops it as operators would: nginx and the replicas let transfers end. A second one ends it
at once.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO

from service import settings
from service.errors import SettingsError
from tests import stores
from tests.stores import NotInstalled, Store, free_ports

ROOT = Path(__file__).parents[1]
NGINX = ROOT / "infra" / "nginx"
BUCKET = "message-history"
SERVICE = [sys.executable, "-m", "service"]

SEARCHED = ":/usr/sbin:/usr/local/sbin"
"""Where nginx may be that a user's PATH does not name."""

STARTUP = 30
"""Seconds that a process has to answer."""

PATIENCE = 60
"""Seconds that a process has to end: more than any drain of nginx or a replica takes."""

Output = IO[bytes] | None
"""Where processes log to: `None` is this one's own output."""


class Failed(Exception):
    """The stack does not run; the message says why, in one line."""


class Process:
    """A process that does not outlive this one, and can be started again."""

    def __init__(
        self, name: str, command: Sequence[object], environment: Mapping[str, str], output: Output
    ) -> None:
        self.name = name
        self._command = list(map(str, command))
        self._environment = environment
        self._output = output
        self.stdout: IO[bytes] | int | None = output
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        guard = []
        # Even SIGKILL for this one then leaves none behind, nor nginx, told so softly, its workers.
        # It is bound to the thread that starts it, so only the main one may ask for it.
        if shutil.which("setpriv") and threading.current_thread() is threading.main_thread():
            guard = ["setpriv", "--pdeathsig", "TERM", "--"]
        self._running = subprocess.Popen(
            [*guard, *self._command],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self.stdout,
            stderr=self._output,
            start_new_session=True,  # Ctrl-C is for this one; it ends what it started.
        )

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return None if self._running is None else self._running.poll()

    def send(self, number: signal.Signals) -> None:
        if self._running is not None and self.code is None:
            self._running.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code; after so many seconds it is killed."""
        assert self._running is not None
        try:
            return self._running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._running.wait()

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        """Poll, while it lives."""
        deadline = time.monotonic() + STARTUP
        while not condition():
            if self.code is not None:
                raise Failed(f"{self.name} ended with {self.code}.")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} does not answer.")
            time.sleep(0.05)


class Replica(Process):
    """The service on a port that stays the same when it is started again."""

    def __init__(
        self, name: str, port: int, environment: Mapping[str, str], output: Output
    ) -> None:
        variables = {"HISTORY_HOST": "127.0.0.1", "HISTORY_PORT": str(port)}
        super().__init__(name, SERVICE, {**environment, **variables}, output)
        self.stdout = subprocess.DEVNULL  # There it invites everybody to come past nginx.
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> None:
        self.until(lambda: stores.answers(self.port, "/readyz"))


class Nginx(Process):
    """nginx at a URL, with a folder for its configuration and whatever else it writes."""

    def __init__(self, url: str, folder: Path, output: Output) -> None:
        super().__init__("nginx", [*command(find_nginx(), folder), "-g", "daemon off;"], {}, output)
        self.url = url
        self.folder = folder


@dataclass
class Stack:
    """nginx in front of replicas."""

    nginx: Nginx
    replicas: Sequence[Replica]
    processes: Sequence[Process] = field(init=False)

    def __post_init__(self) -> None:
        self.processes = [self.nginx, *self.replicas]

    @property
    def url(self) -> str:
        return self.nginx.url

    def stop(self) -> None:
        """All at once: nginx takes no more connections, the replicas finish what it has begun."""
        self.nginx.send(signal.SIGQUIT)
        for replica in self.replicas:
            replica.send(signal.SIGTERM)
        for process in self.processes:
            process.wait()


@contextmanager
def stack(
    store: Store,
    variables: Mapping[str, str] = MappingProxyType({}),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    output: Output = None,
) -> Iterator[Stack]:
    """`init-bucket`, two replicas and nginx until the block ends; port 0 is any free one.

    In the end, transfers are waited for where the block ended well, and else are not.
    """
    environment = {
        **{name: os.environ[name] for name in os.environ if name.startswith("HISTORY_")},
        "PATH": os.environ["PATH"],
        "AWS_CONFIG_FILE": os.devnull,  # Nobody's own settings.
        "AWS_ENDPOINT_URL_S3": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "AWS_DEFAULT_REGION": store.region,
        "HISTORY_BUCKET": BUCKET,
        **variables,
    }
    init_bucket = Process("init-bucket", [*SERVICE, "init-bucket"], environment, output)
    ports = free_ports(2)
    replicas = [
        Replica(f"replica {number}", port, environment, output)
        for number, port in enumerate(ports, start=1)
    ]
    with balancer(ports, host=host, port=port, output=output) as nginx:
        running = Stack(nginx, replicas)
        try:
            init_bucket.start()
            if init_bucket.wait():
                raise Failed("init-bucket failed.")
            for replica in replicas:
                replica.start()
            for replica in replicas:
                replica.ready()
            yield running
            running.stop()
        finally:
            for process in (init_bucket, *replicas):
                process.kill()


@contextmanager
def balancer(
    replicas: Sequence[int],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listen: str = "",
    output: Output = None,
) -> Iterator[Nginx]:
    """Run nginx alone, in front of these ports of this machine.

    `listen` is the whole of its listen.conf where that holds more than host and port.
    """
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        # Started by root, its workers are nobody's. They shall write nothing, but not for want of
        # a way to their folders.
        Path(folder).chmod(0o711)
        port = port or free_ports(1)[0]
        configure(Path(folder), listen or f"listen {_quoted(host)}:{port};\n", replicas)
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        nginx = Nginx(f"http://{_quoted(here)}:{port}", Path(folder), output)
        nginx.start()
        try:
            nginx.until(lambda: _accepts(here, port))
            yield nginx
        finally:
            if nginx.code is None:
                nginx.send(signal.SIGTERM)
                nginx.wait()


def find_nginx() -> str:
    """Where nginx is. Raises `NotInstalled`."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + SEARCHED)
    if found is None:
        raise NotInstalled("nginx is not installed: apt-get install nginx-light")
    return found


def configure(folder: Path, listen: str, replicas: Sequence[int]) -> None:
    """Put the configuration into a folder, and beside it what differs from that of Compose."""
    (folder / "nginx.conf").symlink_to(NGINX / "nginx.conf")
    (folder / "listen.conf").write_text(listen)
    upstream = (NGINX / "upstream.conf").read_text()
    for number, port in enumerate(replicas, start=1):
        upstream = upstream.replace(f"history-{number}:5558", f"127.0.0.1:{port}")
    (folder / "upstream.conf").write_text(upstream)


def command(program: str, folder: Path | str) -> list[str]:
    return [program, "-p", str(folder), "-c", f"{folder}/nginx.conf", "-e", "stderr"]


def _accepts(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def _quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_free(host: str, port: int) -> None:
    """Say it once: nginx would say it six times."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise Failed(
            f"Cannot listen on {host} port {port} ({reason}): "
            "set HISTORY_PORT to a free one, or to 0 for any."
        ) from error


class _Signals:
    """The first one asks to stop, the second to do so at once."""

    def __init__(self) -> None:
        self.processes: Sequence[Process] = ()
        self._stopped = threading.Event()
        self._handle(self._stop)

    def wait(self) -> None:
        """Wait for the first one. Raises `Failed` if one of the processes ends before."""
        while not self._stopped.wait(0.5):
            for process in self.processes:
                if process.code is not None:
                    raise Failed(f"{process.name} ended with {process.code}.")

    def _handle(self, action: Callable[..., None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, action)

    def _stop(self, *_: object) -> None:
        self._handle(self._hurry)
        self._stopped.set()
        if not self.processes:
            raise KeyboardInterrupt

    def _hurry(self, *_: object) -> None:
        for process in self.processes:
            process.send(signal.SIGTERM)  # They all take a second signal so.


def run() -> None:
    """Run until a signal. Raises what stands in the way."""
    signals = _Signals()
    config = settings.load(bucket=BUCKET, host="127.0.0.1")
    find_nginx()
    _check_free(config.host, config.port)
    print("LocalStack, init-bucket, two replicas and nginx start …", flush=True)
    with (
        stores.localstack() as store,
        stack(store, host=config.host, port=config.port) as running,
    ):
        signals.processes = running.processes
        print(f"\n  message-history-server on {running.url}, through nginx", flush=True)
        for replica in running.replicas:
            print(f"  {replica.name} alone on {replica.url}", flush=True)
        signals.wait()
        print("Transfers may end; a second signal stops at once.", flush=True)


def main() -> int:
    # nginx opens it anew, and appends; so must whoever else writes to what may be a file.
    fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
    try:
        run()
    except KeyboardInterrupt:
        return 0
    except SettingsError as error:
        mistakes = list(error.mistakes)
    except (Failed, NotInstalled) as error:
        mistakes = [str(error)]
    else:
        return 0
    for mistake in mistakes:
        print(f"Error: {mistake}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
