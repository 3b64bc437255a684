"""A container engine: one that runs already, or a Docker daemon that ends with the tests.

The fixtures in conftest.py use it.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.repository import ROOT
from tests.support.services.process import clean_environment
from tests.support.services.replicas import Process, StackFailed
from tests.support.stores import NotInstalled

DATA = ROOT / ".engine"
"""The images of a daemon that the tests start. They stay, so that the next run is quick."""


@dataclass(frozen=True)
class Engine:
    """The `docker` command, connected to an engine."""

    environment: Mapping[str, str] = field(repr=False)
    is_ours: bool
    """Whether the tests have started this engine. Others may have images that must stay."""

    def attempt(
        self, *arguments: object, timeout: float = 60, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker` with these arguments."""
        return subprocess.run(
            ["docker", *map(str, arguments)],
            cwd=ROOT,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *arguments: object, timeout: float = 60) -> str:
        """Run `docker` with these arguments, which have to succeed. Return its output."""
        result = self.attempt(*arguments, timeout=timeout)
        assert result.returncode == 0, f"docker {arguments[0]}: {result.stderr or result.stdout}"
        return result.stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what the engine knows about a container or an image."""
        [description] = json.loads(self.run("inspect", name))
        return dict(description)

    @property
    def build_network(self) -> str:
        """The network in which the steps of a build reach the package index."""
        has_bridge = self.attempt("network", "inspect", "bridge").returncode == 0
        return "default" if has_bridge else "host"

    def build(self, tag: str, *options: object, context: Path = ROOT) -> None:
        """Build an image from a folder that has infra/Dockerfile."""
        names = ("--tag", tag, "--file", context / "infra" / "Dockerfile")
        network = ("--network", self.build_network)
        self.run("build", *names, *network, *options, context, timeout=900)


@contextmanager
def running_engine() -> Iterator[Engine]:
    """Use the engine that DOCKER_HOST or Docker's context names, or else start one.

    Raises `NotInstalled` if there is none.
    """
    if shutil.which("docker") is None:
        raise NotInstalled("Docker is not installed: apt-get install docker.io")
    docker_variables = {name: os.environ[name] for name in os.environ if name.startswith("DOCKER_")}
    engine = Engine(clean_environment(**docker_variables), is_ours=False)
    if engine.attempt("compose", "version").returncode:
        raise NotInstalled(
            "Docker Compose is not installed: https://docs.docker.com/compose/install"
        )
    if engine.attempt("version").returncode == 0:
        yield engine
        return
    if "DOCKER_HOST" in os.environ:
        raise NotInstalled("no container engine responds at DOCKER_HOST")
    if os.geteuid() or shutil.which("dockerd") is None:
        raise NotInstalled("no container engine is running: start Docker, or set DOCKER_HOST")
    with _running_daemon() as host:
        yield Engine({**engine.environment, "DOCKER_HOST": host}, is_ours=True)


@contextmanager
def _running_daemon() -> Iterator[str]:
    """Run dockerd without a change of this machine's network. Yield its address.

    Raises `NotInstalled` if it cannot run here.
    """
    _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        host = f"unix://{folder}/socket"
        log = Path(folder) / "log"
        command = [
            *("dockerd", f"--host={host}", f"--pidfile={folder}/pid"),
            *(f"--data-root={DATA}", f"--exec-root={folder}/exec"),
            # Published ports go through docker-proxy, and builds use the network of this machine.
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
            # By default, containers would get a higher limit than the daemon may have.
            f"--default-ulimit=nofile={open_files}:{open_files}",
        ]
        with log.open("wb") as output:
            daemon = Process("dockerd", command, clean_environment(), output)
            daemon.start()
        try:
            _wait_for(daemon, host, log)
            yield host
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
            _unmount(f"{folder}/exec/")


def _wait_for(daemon: Process, host: str, log: Path) -> None:
    """Wait until the daemon responds. Raises `NotInstalled` if it cannot run here."""
    engine = Engine(clean_environment(DOCKER_HOST=host), is_ours=True)
    try:
        daemon.wait_until(lambda: engine.attempt("version").returncode == 0)
    except StackFailed as error:
        _, _, last_line = log.read_text().strip().rpartition("\n")
        raise NotInstalled(f"no container engine is running: {error} {last_line}") from error


def _unmount(folder: str) -> None:
    """Unmount what the daemon leaves in this folder: a network namespace."""
    for line in Path("/proc/mounts").read_text().splitlines():
        mount = line.split()[1]
        if mount.startswith(folder):
            subprocess.run(["umount", mount], check=True)
