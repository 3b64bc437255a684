"""A store that follows a script, and requests to send to it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from botocore.config import Config

OBJECT = bytes(range(256)) * 2_000
GET = b"GET /bucket/object HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PUT = b"PUT /bucket/put HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
FOREVER = 3_600


def client_options(url: str) -> dict[str, Any]:
    """Return the options of an S3 client that does not retry."""
    return {
        "service_name": "s3",
        "endpoint_url": url,
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "region_name": "us-east-1",
        "config": Config(
            retries={"total_max_attempts": 1}, request_checksum_calculation="when_required"
        ),
    }


def object_keys(s3: Any) -> list[str]:
    return [stored["Key"] for stored in s3.list_objects_v2(Bucket="bucket")["Contents"]]


@contextmanager
def scripted_store(script: Callable[[socket.socket], object]) -> Iterator[str]:
    """Run a store that follows the script on each connection and then closes it."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(ConnectionError):
                connection.settimeout(10)
                script(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def read_head(connection: socket.socket) -> bytes:
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return bytes(head)
