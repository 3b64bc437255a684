"""nginx as a process, with the very same infra/nginx/nginx.conf."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.services.replicas import Output, Process
from tests.support.stores import NotInstalled, free_ports

NGINX = ROOT / "infra" / "nginx"

SEARCHED = ":/usr/sbin:/usr/local/sbin"
"""Where nginx may be that a user's PATH does not name."""


class Nginx(Process):
    """nginx at a URL, with a folder for its configuration and whatever else it writes."""

    def __init__(self, url: str, folder: Path, output: Output) -> None:
        super().__init__("nginx", [*command(find_nginx(), folder), "-g", "daemon off;"], {}, output)
        self.url = url
        self.folder = folder


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
        configure(Path(folder), listen or f"listen {quoted(host)}:{port};\n", replicas)
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        nginx = Nginx(f"http://{quoted(here)}:{port}", Path(folder), output)
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


def quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else host
