"""Fixtures for the examples: a folder to run them in, and servers that fail."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.examples.sandbox import Sandbox
from tests.docs.examples.stub_server import StubServer


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox")


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> Iterator[str]:
    """The URL of a port on which nothing listens. It is bound, so no other process can take it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
