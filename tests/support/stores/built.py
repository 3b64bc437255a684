"""S3 servers that `make stores` builds from source: MinIO, versitygw, SeaweedFS and Garage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from tests.support.repository import ROOT
from tests.support.stores.daemons import Daemons, free_ports, responds, responds_ok
from tests.support.stores.store import NotInstalled, Store

ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"


def program(name: str) -> Path:
    """Return the path of a store's program. Raises `NotInstalled`."""
    path = ROOT / ".stores" / name
    if not path.exists():
        raise NotInstalled(f"{name} is not installed: run `make stores`, which needs Go and cargo")
    return path


def built_store(name: str, port: int, lacks: set[str]) -> Store:
    url = f"http://127.0.0.1:{port}"
    return Store(name, url, ACCESS_KEY, SECRET_KEY, lacks=frozenset(lacks))


def write_first_object(store: Store) -> None:
    """Write an object, which takes SeaweedFS ten seconds while it creates its first volume."""
    s3 = boto3.client(
        "s3",
        endpoint_url=store.endpoint_url,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name=store.region,
    )
    s3.create_bucket(Bucket="first")
    s3.put_object(Bucket="first", Key="first")


@contextmanager
def minio() -> Iterator[Store]:
    """Start MinIO with one directory."""
    command = program("minio")
    with Daemons() as daemons:
        port, console = free_ports(2)
        daemons.environment |= {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
        }
        addresses = ("--address", f"127.0.0.1:{port}", "--console-address", f"127.0.0.1:{console}")
        daemons.start(command, "server", daemons.directory / "data", *addresses)
        daemons.wait_until(lambda: responds_ok(port, "/minio/health/ready"))
        lacks = {"abort rule", "encryption", "public access block"}
        lacks |= {"policies", "region", "upload prefixes"}
        yield built_store("minio", port, lacks)


@contextmanager
def versitygw() -> Iterator[Store]:
    """Start versitygw on two directories: one for the objects, one for tags and metadata."""
    command = program("versitygw")
    with Daemons() as daemons:
        port = free_ports(1)[0]
        objects, sidecar = daemons.directory / "objects", daemons.directory / "sidecar"
        objects.mkdir()
        sidecar.mkdir()
        daemons.start(
            command,
            *("--access", ACCESS_KEY, "--secret", SECRET_KEY),
            # Without `--keep-alive`, every request is a new connection.
            *("--port", f"127.0.0.1:{port}", "--health", "/health", "--quiet", "--keep-alive"),
            *("posix", "--sidecar", sidecar, objects),
        )
        daemons.wait_until(lambda: responds_ok(port, "/health"))
        lacks = {"lifecycle rules", "abort rule", "encryption", "public access block"}
        lacks |= {"cut bodies", "policies", "versioning"}
        yield built_store("versitygw", port, lacks)


@contextmanager
def seaweedfs() -> Iterator[Store]:
    """Start SeaweedFS with all its servers in one process."""
    command = program("weed")
    with Daemons() as daemons:
        ports = iter(free_ports(9))
        (daemons.directory / "s3.json").write_text(SEAWEEDFS_IDENTITIES)
        # Otherwise each bucket takes seven volumes, and the tests have hundreds of buckets.
        daemons.environment["WEED_MASTER_VOLUME_GROWTH_COPY_1"] = "1"
        servers = [
            f"-{server}.{port}={next(ports)}"
            for server in ("master", "volume", "filer")
            for port in ("port", "port.grpc")
        ]
        port = next(ports)
        daemons.start(
            command,
            "server",
            *servers,
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={daemons.directory}"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=4000", "-filer", "-s3"),
            *(f"-s3.port={port}", f"-s3.port.grpc={next(ports)}", "-s3.port.iceberg=0"),
            f"-s3.config={daemons.directory / 's3.json'}",
        )
        daemons.wait_until(lambda: responds_ok(port, "/healthz"))
        store = built_store("seaweedfs", port, {"encryption", "region", "separate actions"})
        write_first_object(store)
        yield store


@contextmanager
def garage() -> Iterator[Store]:
    """Start Garage with one node. It keeps no object tags."""
    command = program("garage")
    with Daemons() as daemons:
        rpc, port = free_ports(2)
        store = Store(
            "garage",
            f"http://127.0.0.1:{port}",
            access_key=f"GK{'0' * 24}",
            secret_key="1" * 64,
            records="metadata",
            lacks=frozenset(
                {"object tags", "encryption", "public access block", "policies", "versioning"}
                | {"region", "error codes"}
            ),
        )
        config = daemons.directory / "garage.toml"
        config.write_text(GARAGE_CONF.format(home=daemons.directory, rpc=rpc, port=port))
        daemons.environment |= {"GARAGE_CONFIG_FILE": str(config), "RUST_LOG": "garage=warn"}
        daemons.start(command, "server")
        daemons.wait_until(lambda: responds(port, "/", 403))
        node = daemons.run(command, "node", "id", "--quiet").partition("@")[0]
        daemons.run(command, "layout", "assign", "--zone", "a", "--capacity", "10G", node)
        daemons.run(command, "layout", "apply", "--version", 1)
        daemons.run(command, "key", "import", "--yes", store.access_key, store.secret_key)
        daemons.run(command, "key", "allow", "--create-bucket", store.access_key)
        yield store


SEAWEEDFS_IDENTITIES = """
{"identities": [{
  "name": "test",
  "credentials": [{"accessKey": "test-key", "secretKey": "test-secret"}],
  "actions": ["Admin"]
}]}
"""

GARAGE_CONF = """
metadata_dir = "{home}/metadata"
data_dir = "{home}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "0000000000000000000000000000000000000000000000000000000000000000"

[s3_api]
s3_region = "us-east-1"
api_bind_addr = "127.0.0.1:{port}"
"""
