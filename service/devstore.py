"""An embedded S3 for development: moto's server in this process, in memory, on loopback."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

SETTINGS = {"bucket": "message-history-dev", "drain_delay": "0s"}
"""What the settings are with this store, where they are not set."""


def isolate() -> None:
    """Take every AWS and proxy setting out of this process, so that no real bucket is in reach."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "BOTO_", "MOTO_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ |= {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "development",
        "AWS_SECRET_ACCESS_KEY": "development",
        "AWS_DEFAULT_REGION": "us-east-1",
        # In memory: moto would put larger objects into temporary files.
        "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 40),
    }


def running() -> AbstractContextManager[None]:
    """An empty store on a free port, to which this process's botocore is pointed.

    Needs the extra `dev`; `ImportError` without it. To be called after `isolate`.
    """
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - a heavy extra, for --dev alone

    return _run(ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False))


@contextmanager
def _run(store: Any) -> Iterator[None]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store.start()
    host, port = store.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://{host}:{port}"
    try:
        yield
    finally:
        store.stop()
