"""nginx as a process, with the configuration in infra/nginx."""

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

EXTRA_PATH = ":/usr/sbin:/usr/local/sbin"
"""Folders that may contain nginx, but are often not on a user's PATH."""


class Nginx(Process):
    """nginx at a URL, with a folder for its configuration and its files."""

    def __init__(self, url: str, folder: Path, output: Output) -> None:
        super().__init__(
            "nginx", [*nginx_command(find_nginx(), folder), "-g", "daemon off;"], {}, output
        )
        self.url = url
        self.folder = folder


@contextmanager
def running_nginx(
    upstream: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listen: str = "",
    output: Output = None,
) -> Iterator[Nginx]:
    """Run nginx with this upstream.conf.

    `listen` replaces listen.conf, which otherwise gets this host and port.
    """
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        # If root starts nginx, its workers run as another user. Let them reach this folder, or the
        # tests could not notice that a worker writes files.
        Path(folder).chmod(0o711)
        port = port or free_ports(1)[0]
        address = f"{url_host(host)}:{port}"
        configure(Path(folder), listen or listen_on(address), upstream)
        local_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        nginx = Nginx(f"http://{url_host(local_host)}:{port}", Path(folder), output)
        nginx.start()
        try:
            nginx.wait_until(lambda: _accepts(local_host, port))
            yield nginx
        finally:
            if nginx.exit_code is None:
                nginx.send_signal(signal.SIGTERM)
                nginx.wait()


def find_nginx() -> str:
    """Return the path of nginx. Raises `NotInstalled`."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + EXTRA_PATH)
    if program is None:
        raise NotInstalled("nginx is not installed: apt-get install nginx-light")
    return program


def listen_on(address: str) -> str:
    """Return listen.conf with another address than in Docker Compose."""
    return (NGINX / "listen.conf").read_text().replace("listen 5558;", f"listen {address};")


def upstream_of(replicas: Sequence[int]) -> str:
    """Return upstream.conf with these ports of this machine instead of the names."""
    upstream = (NGINX / "upstream.conf").read_text()
    for number, port in enumerate(replicas, start=1):
        upstream = upstream.replace(f"history-{number}:5558", f"127.0.0.1:{port}")
    return upstream


def configure(folder: Path, listen: str, upstream: str) -> None:
    """Write the configuration to a folder, with these contents of its two other files."""
    (folder / "nginx.conf").symlink_to(NGINX / "nginx.conf")
    (folder / "listen.conf").write_text(listen)
    (folder / "upstream.conf").write_text(upstream)


def nginx_command(program: str, folder: Path | str) -> list[str]:
    return [program, "-p", str(folder), "-c", f"{folder}/nginx.conf", "-e", "stderr"]


def _accepts(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
