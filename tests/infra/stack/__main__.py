"""`make stack`: run the services of localstack.yml as plain processes, without containers.

It runs LocalStack, `init-bucket`, two replicas, and nginx with the same infra/nginx/nginx.conf. The
replicas get all settings from the environment, except HISTORY_HOST and HISTORY_PORT, which are the
address of nginx. SIGTERM or Ctrl-C starts a graceful shutdown: nginx and the replicas finish their
transfers. A second signal stops everything at once.
"""

import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from service import settings
from service.errors import SettingsError
from tests.infra.stack.deployment import BUCKET, running_stack
from tests.infra.stack.nginx import find_nginx
from tests.support import stores
from tests.support.services.replicas import Process, StackFailed
from tests.support.stores import NotInstalled


def _check_free(host: str, port: int) -> None:
    """Report an address in use in one line. nginx would print the error six times."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StackFailed(
            f"Cannot listen on {host} port {port} ({reason}): "
            "set HISTORY_PORT to a free port, or to 0 for any free port."
        ) from error


class _Signals:
    """Handles signals: the first starts a graceful shutdown, the second stops at once."""

    def __init__(self) -> None:
        self.processes: Sequence[Process] = ()
        self._stopping = threading.Event()
        self._handle(self._stop)

    def wait(self) -> None:
        """Wait for the first signal. Raises `StackFailed` if a process ends before that."""
        while not self._stopping.wait(0.5):
            for process in self.processes:
                if process.exit_code is not None:
                    raise StackFailed(f"{process.name} ended with {process.exit_code}.")

    def _handle(self, action: Callable[..., None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, action)

    def _stop(self, *_: object) -> None:
        self._handle(self._stop_at_once)
        self._stopping.set()
        if not self.processes:
            raise KeyboardInterrupt

    def _stop_at_once(self, *_: object) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)  # A second signal ends each of them at once.


def run() -> None:
    """Run until a signal arrives. Raises `SettingsError`, `NotInstalled` or `StackFailed`."""
    signals = _Signals()
    config = settings.load(bucket=BUCKET, host="127.0.0.1")
    find_nginx()
    _check_free(config.host, config.port)
    print("Starting LocalStack, init-bucket, two replicas and nginx …", flush=True)
    with (
        stores.localstack() as store,
        running_stack(store, host=config.host, port=config.port) as running,
    ):
        signals.processes = running.processes
        print(f"\n  message-history-server on {running.url}, through nginx", flush=True)
        for replica in running.replicas:
            print(f"  {replica.name} without nginx on {replica.url}", flush=True)
        signals.wait()
        print("Waiting for transfers to finish. A second signal stops at once.", flush=True)


def main() -> int:
    # Standard output may be a file. nginx opens it again and appends, so the others have to append.
    fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
    try:
        run()
    except KeyboardInterrupt:
        return 0
    except SettingsError as error:
        messages = list(error.mistakes)
    except (StackFailed, NotInstalled) as error:
        messages = [str(error)]
    else:
        return 0
    for message in messages:
        print(f"Error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
