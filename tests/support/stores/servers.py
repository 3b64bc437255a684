"""moto, LocalStack, MiniStack and a server that discards everything, as processes."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.stores.daemons import Daemons, free_ports, responds_ok
from tests.support.stores.store import NotInstalled, Store

MOTO_LACKS = frozenset({"credentials", "policies", "upload times"})
LOCALSTACK_LACKS = frozenset({"credentials", "policies"})


@contextmanager
def moto() -> Iterator[Store]:
    """Start moto's server. All tests of one worker share its buckets."""
    with Daemons() as daemons, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        launch = Path(__file__).parent / "launch" / "start_moto.py"
        daemons.start(sys.executable, launch, listener.fileno(), pass_fds=(listener.fileno(),))
        listener.close()
        daemons.wait_until(lambda: responds_ok(port, "/"))
        yield Store("moto", f"http://127.0.0.1:{port}", lacks=MOTO_LACKS)


@contextmanager
def moto_metadata() -> Iterator[Store]:
    """Start moto for a service that keeps records in metadata."""
    with moto() as store:
        yield replace(store, records="metadata")


@contextmanager
def sink(object_size: int) -> Iterator[Store]:
    """Start a server that discards what it gets, and has a bundle of zeros under every key."""
    with Daemons() as daemons, socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        port = listener.getsockname()[1]
        launch = Path(__file__).parent / "launch" / "start_sink.py"
        descriptor = listener.fileno()
        daemons.start(sys.executable, launch, descriptor, object_size, pass_fds=(descriptor,))
        listener.close()
        daemons.wait_until(lambda: responds_ok(port, "/"))
        yield Store("sink", f"http://127.0.0.1:{port}")


@contextmanager
def localstack() -> Iterator[Store]:
    """Start LocalStack's S3 from the virtual environment that `make localstack` creates."""
    python = localstack_python()
    with Daemons() as daemons, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        daemons.environment |= {
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "LOCALSTACK_HOST": f"127.0.0.1:{port}",
            "GATEWAY_SERVER": "twisted",
            "SERVICES": "s3",
            "STRICT_SERVICE_LOADING": "1",
            "EAGER_SERVICE_LOADING": "1",
            # In a container, LocalStack assumes its own image and writes to /var/lib.
            "OVERRIDE_IN_DOCKER": "0",
            "FILESYSTEM_ROOT": str(daemons.directory),
            # Turn off everything that uses the network.
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
            "LS_LOG": "warn",
        }
        launch = Path(__file__).parent / "launch" / "start_localstack.py"
        daemons.start(python, launch, listener.fileno(), pass_fds=(listener.fileno(),))
        listener.close()
        daemons.wait_until(lambda: responds_ok(port, "/_localstack/health"))
        yield Store("localstack", f"http://127.0.0.1:{port}", lacks=LOCALSTACK_LACKS)


def localstack_python() -> Path:
    """Return the Python interpreter of LocalStack's environment. Raises `NotInstalled`."""
    environment = Path(os.environ.get("LOCALSTACK_VENV") or ROOT / ".venv-localstack")
    python = environment / "bin" / "python"
    if not python.exists():
        raise NotInstalled("LocalStack is not installed: run `make localstack`")
    return python


@contextmanager
def ministack() -> Iterator[Store]:
    """Start MiniStack, which uses the least CPU, from the environment of `make ministack`."""
    program = ROOT / ".venv-ministack" / "bin" / "ministack"
    if not program.exists():
        raise NotInstalled("MiniStack is not installed: run `make ministack`")
    with Daemons() as daemons:
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
        daemons.wait_until(lambda: responds_ok(port, "/_ministack/health"))
        yield Store("ministack", f"http://127.0.0.1:{port}")
