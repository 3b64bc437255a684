"""A Kubernetes API server with an empty etcd, on free ports of 127.0.0.1. There are no nodes.

It checks objects as every cluster does: their schema, their names and values, and the Pod Security
Standard of their namespace.
"""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.infra.kubernetes.manifests import Object
from tests.infra.tools import find_or_skip, find_tool
from tests.support.stores.daemons import Daemons, free_ports

TOKEN = "a-token"


@dataclass(frozen=True)
class ApiServer:
    """An API server that runs, and an administrator's access to it."""

    http: httpx.Client
    kubeconfig: Path

    def apply(self, item: Object, namespace: str, **parameters: str) -> httpx.Response:
        """Create or change an object as `kubectl apply --server-side --validate=strict` does."""
        name, version = item["metadata"]["name"], item["apiVersion"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        # Reversed, because subresources such as deployments/status follow their kind.
        kinds = {kind["kind"]: kind for kind in reversed(self.http.get(root).json()["resources"])}
        kind = kinds[item["kind"]]
        scope = f"/namespaces/{namespace}" if kind["namespaced"] else ""
        return self.http.patch(
            f"{root}{scope}/{kind['name']}/{name}",
            params={"fieldManager": "tests", "fieldValidation": "Strict", **parameters},
            headers={"Content-Type": "application/apply-patch+yaml"},
            content=json.dumps(item),
        )


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """Start etcd and kube-apiserver. Skip the test if they are not built."""
    etcd = find_or_skip(lambda: find_tool("etcd"))
    kube_apiserver = find_or_skip(lambda: find_tool("kube-apiserver"))
    with Daemons() as daemons:
        client, peer, port = free_ports(3)
        folder = daemons.directory
        etcd_url = f"http://127.0.0.1:{client}"
        daemons.start(
            etcd,
            *("--data-dir", folder / "etcd", "--log-level", "error", "--unsafe-no-fsync"),
            *("--listen-client-urls", etcd_url, "--advertise-client-urls", etcd_url),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
        )
        key = folder / "service-accounts.pem"
        key.write_bytes(private_key())
        (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        daemons.start(
            kube_apiserver,
            *("--etcd-servers", etcd_url, "--cert-dir", folder / "certificates"),
            *("--bind-address", "127.0.0.1", "--secure-port", port),
            *("--token-auth-file", folder / "tokens.csv", "--authorization-mode", "RBAC"),
            *("--service-account-key-file", key, "--service-account-signing-key-file", key),
            *("--service-account-issuer", "https://127.0.0.1"),
            *("--service-cluster-ip-range", "10.0.0.0/24"),
        )
        certificate = folder / "certificates" / "apiserver.crt"
        daemons.wait_until(certificate.exists)
        url = f"https://127.0.0.1:{port}"
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.dump(access(url, certificate)))
        with httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=certificate),
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as http:
            daemons.wait_until(lambda: is_ready(http))
            yield ApiServer(http, kubeconfig)


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def private_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def access(url: str, certificate: Path) -> Any:
    """Return a kubeconfig."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "tests",
                "cluster": {"server": url, "certificate-authority": str(certificate)},
            }
        ],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
        "current-context": "tests",
    }
