"""A certificate for the TLS tests."""

import subprocess
from pathlib import Path


def make_certificate(folder: Path) -> Path:
    """Write a certificate for localhost and its key to the paths that listen-tls.conf uses."""
    (folder / "tls").mkdir()
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
    command += "-subj /CN=localhost -addext subjectAltName=DNS:localhost "
    command += "-keyout tls/key.pem -out tls/fullchain.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "tls" / "fullchain.pem"
