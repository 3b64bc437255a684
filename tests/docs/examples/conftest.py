"""Fixtures for the examples: where they run, and servers that fail."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.examples.sandbox import Sandbox
from tests.docs.examples.stub_server import StubServer
from tests.docs.examples.typescript import (
    Chromium,
    Node,
    Runtime,
    compile_example,
    find_tsc,
    serving,
)
from tests.infra.tools import find_or_skip
from tests.support.clients.chromium import running_chromium


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find_or_skip(find_tsc)
    folder = tmp_path_factory.mktemp("typescript")
    compile_example(folder)
    return folder


@pytest.fixture(scope="module")
def node(compiled: Path) -> Runtime:
    return Node(compiled)


@pytest.fixture(scope="module")
def chromium(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with (
        running_chromium(tmp_path_factory.mktemp("chromium")) as driver,
        serving(compiled) as page_url,
    ):
        yield Chromium(driver, page_url)


@pytest.fixture(params=["node", "chromium"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    runtime: Runtime = request.getfixturevalue(request.param)
    return runtime
