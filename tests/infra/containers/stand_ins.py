"""Images with the names of those that localstack.yml and infra/Dockerfile use.

They are pulled. Where no registry can be reached, images with what the tests need of them are made
from Debian's packages and requirements/localstack.txt. The fixtures in conftest.py use it.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from tests.infra.containers.engine import Engine
from tests.support.repository import ROOT
from tests.support.stores import NotInstalled

COMPOSE = yaml.safe_load((ROOT / "localstack.yml").read_text())["services"]
NGINX: str = COMPOSE["nginx"]["image"]
LOCALSTACK: str = COMPOSE["localstack"]["image"]
PYTHON = re.findall(
    r"^ARG PYTHON=(\S+)$", (ROOT / "infra" / "Dockerfile").read_text(), re.MULTILINE
)[0]

DEBIAN = {
    PYTHON: ("trixie", "ca-certificates,python3-pip,python3-venv,python-is-python3"),
    NGINX: ("forky", "nginx-light,wget"),
}
"""The release of Debian that has this version, or a newer one, and the packages."""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

LOCALSTACK_DOCKERFILE = f"""
FROM {PYTHON}
RUN apt-get update && apt-get install --yes --no-install-recommends curl
COPY localstack.txt /tmp/localstack.txt
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes \
    -r /tmp/localstack.txt
ENV GATEWAY_LISTEN=0.0.0.0:4566 GATEWAY_SERVER=twisted OVERRIDE_IN_DOCKER=0 DISABLE_EVENTS=1 \
    SKIP_SSL_CERT_DOWNLOAD=1 DNS_ADDRESS=0
ENTRYPOINT ["/opt/venv/bin/python", "-m", "localstack.runtime.main"]
"""


def provide(engine: Engine, name: str) -> None:
    """Make this image available to the engine. Raises `NotInstalled` if that is not possible."""
    if engine.attempt("image", "inspect", name).returncode == 0:
        return
    pull = engine.attempt("pull", "--quiet", name, timeout=600)
    if pull.returncode == 0:
        return
    if not engine.is_ours or os.geteuid() or shutil.which("debootstrap") is None:
        # In an engine that others use, an image with this name but other contents would mislead.
        raise NotInstalled(f"the image {name} cannot be pulled: {pull.stderr.strip()}")
    print(f"\n{name} cannot be pulled: making an image with this name …", flush=True)
    if name == LOCALSTACK:
        provide(engine, PYTHON)
        _build_localstack(engine)
    else:
        _install_debian(engine, name)


def _build_localstack(engine: Engine) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dockerfile = Path(folder) / "infra" / "Dockerfile"
        dockerfile.parent.mkdir()
        dockerfile.write_text(LOCALSTACK_DOCKERFILE)
        shutil.copy(ROOT / "requirements" / "localstack.txt", folder)
        engine.build(LOCALSTACK, context=Path(folder))


def _install_debian(engine: Engine, name: str) -> None:
    release, packages = DEBIAN[name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        # The script for "sid" fits every release: an older debootstrap has none for newer ones.
        _run("debootstrap", "--variant=minbase", f"--include={packages}", release, root, "", "sid")
        if name == PYTHON:
            # pip in the image reaches the package index as pip on this machine does.
            shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        else:
            # The user of localstack.yml.
            _run("chroot", root, "useradd", "--uid=101", "--system", "stand-in")
        archive = Path(folder) / "root.tar"
        _run("tar", "--create", f"--file={archive}", f"--directory={root}", ".")
        variables = [
            f"--change=ENV {variable}={os.environ[variable]}"
            for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
            if name == PYTHON and variable in os.environ
        ]
        engine.run("import", *variables, archive, name, timeout=300)


def _run(*command: object) -> None:
    result = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, f"{command[0]}: {result.stdout[-2000:]}"
