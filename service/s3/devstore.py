"""The embedded S3 store of `serve --dev`: moto's server in this process, in memory, on loopback.

`service.cli` starts it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

SETTINGS = {"bucket": "message-history-dev", "drain_delay": "0s"}
"""Defaults of the settings with this store."""


def isolate() -> None:
    """Remove all AWS and proxy settings from this process: it must not reach a real bucket."""
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
        # Without this, moto stores larger objects in temporary files.
        "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 40),
    }


def running() -> AbstractContextManager[None]:
    """Run an empty store on a free port, and point botocore in this process to it.

    Call `isolate` first. Raises `ImportError` if the extra `dev` is not installed.
    """
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - a large extra that only --dev needs

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
