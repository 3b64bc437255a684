"""The address and credentials of an S3 server."""

import os
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from service.s3.records import Records

FEATURES = {
    "object tags",
    "lifecycle rules",
    "abort rule",  # It drops AbortIncompleteMultipartUpload from lifecycle rules.
    "encryption",
    "public access block",
    "cut bodies",  # It keeps what has arrived of a request that was cut.
    "credentials",  # It accepts any credentials.
    "error codes",  # It answers AccessDenied to wrong credentials.
    "policies",  # Bucket policies do not limit these credentials, or there are none.
    "region",  # It accepts any region.
    "separate actions",  # A policy that denies one action denies another one too.
    "versioning",
    "upload times",  # It does not say when a multipart upload began.
    "upload prefixes",  # It lists multipart uploads of one key only.
}


@dataclass(frozen=True)
class Store:
    """An S3 server with its address and credentials."""

    name: str
    endpoint_url: str
    access_key: str = "test"
    secret_key: str = field(default="test", repr=False)
    region: str = "us-east-1"
    records: Records = "tags"
    """Where this store keeps records, the value of HISTORY_RECORDS."""

    lacks: frozenset[str] = frozenset()
    """What this store does not offer, of `FEATURES`."""


class NotInstalled(Exception):
    """A store is not installed on this machine. The message says how to install it."""


def from_environment() -> Store | None:
    """Return the store that AWS_ENDPOINT_URL_S3 names, or `None` if it is not set."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3")
    if not url:
        return None
    return Store(
        name="environment",
        endpoint_url=url,
        access_key=os.environ.get("AWS_ACCESS_KEY_ID", "test"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY", "test"),
        region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        records="metadata" if os.environ.get("RECORDS") == "metadata" else "tags",
    )


def connection_problem(store: Store) -> str | None:
    """Return an error message if this store's endpoint accepts no connection."""
    address = urlsplit(store.endpoint_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        return (
            f"AWS_ENDPOINT_URL_S3 is {store.endpoint_url}, where no server can be reached "
            f"({error.strerror or error}): start it, or unset the variable to test with moto."
        )
    return None
