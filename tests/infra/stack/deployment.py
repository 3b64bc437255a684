"""Two replicas behind nginx, as plain processes."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from tests.infra.stack.nginx import Nginx, running_nginx, upstream_of
from tests.support.services.replicas import SERVICE_COMMAND, Output, Process, Replica, StackFailed
from tests.support.stores import Store, free_ports

BUCKET = "message-history"


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
        """Stop nginx and the replicas gracefully, all at the same time.

        nginx accepts no more connections, and the replicas finish their transfers.
        """
        self.nginx.send_signal(signal.SIGQUIT)
        for replica in self.replicas:
            replica.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait()


@contextmanager
def running_stack(
    store: Store,
    variables: Mapping[str, str] = MappingProxyType({}),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    output: Output = None,
) -> Iterator[Stack]:
    """Run `init-bucket`, two replicas and nginx until the block ends. Port 0 is any free port.

    If the block ends without an exception, all transfers are finished first.
    """
    environment = {
        **{name: os.environ[name] for name in os.environ if name.startswith("HISTORY_")},
        "PATH": os.environ["PATH"],
        "AWS_CONFIG_FILE": os.devnull,  # Ignore the settings of the user.
        "AWS_ENDPOINT_URL_S3": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "AWS_DEFAULT_REGION": store.region,
        "HISTORY_BUCKET": BUCKET,
        **variables,
    }
    init_bucket = Process("init-bucket", [*SERVICE_COMMAND, "init-bucket"], environment, output)
    ports = free_ports(2)
    replicas = [
        Replica(f"replica {number}", port, environment, output)
        for number, port in enumerate(ports, start=1)
    ]
    with running_nginx(upstream_of(ports), host=host, port=port, output=output) as nginx:
        running = Stack(nginx, replicas)
        try:
            init_bucket.start()
            if init_bucket.wait():
                raise StackFailed("init-bucket failed.")
            for replica in replicas:
                replica.start()
            for replica in replicas:
                replica.wait_until_ready()
            yield running
            running.stop()
        finally:
            for process in (init_bucket, *replicas):
                process.kill()
