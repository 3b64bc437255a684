"""localstack.yml as a Compose project, with free ports of 127.0.0.1.

The fixtures in conftest.py start it, test_compose.py uses it.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.infra.containers.engine import Engine
from tests.infra.containers.stand_ins import NGINX
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.repository import ROOT

REPLICAS = ("history-1", "history-2")

CHANGES = """\
services:
  init-bucket: &service {build: {network: BUILD-NETWORK}}
  history-1: &replica {<<: *service, ports: ["127.0.0.1::5558"]}
  history-2: *replica
  nginx: {ports: !override ["127.0.0.1::5558"]}
"""
"""Free ports instead of 5558. In the tests, the replicas have ports too."""


MAX_OTHERS = 3
"""Containers that take the addresses that are free, of which there are at most two."""


@dataclass
class Project:
    """The services of localstack.yml, in an engine."""

    engine: Engine
    name: str
    changes: Path

    def attempt(self, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` with these arguments."""
        files = ("--file", ROOT / "localstack.yml", "--file", self.changes)
        return self.engine.attempt(
            *("compose", "--project-name", self.name, *files, *arguments),
            timeout=timeout,
            COMPOSE_DISABLE_ENV_FILE="1",
        )

    def run(self, *arguments: object, timeout: float = 60) -> str:
        """Run `docker compose` with these arguments, which have to succeed. Return its output."""
        result = self.attempt(*arguments, timeout=timeout)
        assert result.returncode == 0, f"docker compose {arguments[0]}: {result.stderr}"
        return result.stdout.strip()

    def url(self, service: str) -> str:
        return f"http://{self.run('port', service, 5558)}"

    def container(self, service: str) -> str:
        """Return the id of the container of a service."""
        return self.run("ps", "--all", "--quiet", service)

    def inspect(self, service: str) -> dict[str, Any]:
        return self.engine.inspect(self.container(service))

    def address(self, service: str) -> str:
        """Return the address of a service in the network of the project."""
        [network] = self.inspect(service)["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def log(self, service: str) -> subprocess.CompletedProcess[str]:
        """Return both streams of a service's output. Search them for keys."""
        output = self.engine.attempt("logs", self.container(service))
        LEAK_DETECTOR.search(service, output.stdout + output.stderr)
        return output

    def restart_at_another_address(self, service: str) -> None:
        """Restart a service. Meanwhile, another container takes its address."""
        before = self.address(service)
        self.run("stop", service, timeout=90)
        network = f"{self.name}_default"
        options = ("--detach", "--rm", "--init", "--network", network, "--entrypoint", "sleep")
        others = list[str]()
        try:
            # The engine chooses their addresses. One of the first gets the one that is free now.
            for _ in range(MAX_OTHERS):
                others.append(self.engine.run("run", *options, NGINX, "600"))
            self.run("up", "--detach", "--no-deps", "--wait", service, timeout=90)
        finally:
            self.engine.run("rm", "--force", *others)
        assert self.address(service) != before


@contextmanager
def running_project(engine: Engine, folder: Path) -> Iterator[Project]:
    """Build the image and start all services. Remove all but the images at the end."""
    changes = folder / "changes.yml"
    changes.write_text(CHANGES.replace("BUILD-NETWORK", engine.build_network))
    project = Project(engine, f"history-test-{uuid4().hex[:8]}", changes)
    try:
        project.run("up", "--build", "--detach", "--wait", timeout=900)
        yield project
    except BaseException:
        print(project.attempt("logs", "--no-color").stdout[-20_000:])
        raise
    finally:
        project.run("down", "--volumes", "--timeout", "10", timeout=120)
