"""What localstack.yml runs in containers, as plain processes: `make stack`.

LocalStack, `init-bucket`, two replicas, and nginx with the very same infra/nginx/nginx.conf. All
settings of the environment are the replicas'; HISTORY_HOST and HISTORY_PORT are nginx's. SIGTERM or
Ctrl-C stops it as operators would: nginx and the replicas let transfers end. A second one ends it
at once.
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
from tests.support.services.replicas import Failed, Process
from tests.support.stores import NotInstalled


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
        running_stack(store, host=config.host, port=config.port) as running,
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
