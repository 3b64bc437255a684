"""moto, LocalStack and MiniStack as processes."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.stores.daemons import Daemons, answers, free_ports
from tests.support.stores.store import NotInstalled, Store


@contextmanager
def moto() -> Iterator[Store]:
    """A server of moto's; all tests of one worker share its buckets."""
    with Daemons() as daemons, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        launch = Path(__file__).parent / "moto_launch.py"
        daemons.start(sys.executable, launch, listener.fileno(), keep=(listener.fileno(),))
        listener.close()
        daemons.wait_for(lambda: answers(port, "/"))
        yield Store("moto", f"http://127.0.0.1:{port}")


@contextmanager
def localstack() -> Iterator[Store]:
    """LocalStack's S3, from the virtual environment that `make localstack` makes."""
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
            # It takes a container for its own image, and then writes to /var/lib.
            "OVERRIDE_IN_DOCKER": "0",
            "FILESYSTEM_ROOT": str(daemons.directory),
            # Nothing of it needs the network.
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
            "LS_LOG": "warn",
        }
        launch = Path(__file__).parent / "localstack_launch.py"
        daemons.start(python, launch, listener.fileno(), keep=(listener.fileno(),))
        listener.close()
        daemons.wait_for(lambda: answers(port, "/_localstack/health"))
        yield Store("localstack", f"http://127.0.0.1:{port}")


def localstack_python() -> Path:
    """The interpreter that it is installed for. Raises `NotInstalled`."""
    environment = Path(os.environ.get("LOCALSTACK_VENV") or ROOT / ".venv-localstack")
    python = environment / "bin" / "python"
    if not python.exists():
        raise NotInstalled("LocalStack is not installed: run `make localstack`")
    return python


@contextmanager
def ministack() -> Iterator[Store]:
    """MiniStack, from the virtual environment that `make ministack` makes: it costs the least."""
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
        daemons.wait_for(lambda: answers(port, "/_ministack/health"))
        yield Store("ministack", f"http://127.0.0.1:{port}")
