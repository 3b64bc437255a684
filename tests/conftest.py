"""Fixtures that start real services with real S3 servers, and the hooks that configure pytest."""

import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import botocore
import hypothesis
import pytest
from aiobotocore import httpsession
from aiobotocore.session import AioSession
from botocore.loaders import create_loader

from service.s3 import client
from service.settings import Settings
from tests.support import stores
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.services.thread import (
    SMALL_PART,
    Service,
    StartService,
    init_bucket,
    running_service,
)
from tests.support.stores import Store
from tests.support.stores.access import s3_client
from tests.support.stores.selection import METADATA_STORES, XDIST_GROUPS, chosen_stores

FROM_ENVIRONMENT = stores.from_environment()
"""The store in AWS_ENDPOINT_URL_S3. In xdist's workers, the variable is already removed."""

CHOSEN_STORE = pytest.StashKey[Store | None]()
"""The same store in every process of xdist. If there is one, all tests run against it."""

EVERY_STORE = pytest.StashKey[list[str]]()
"""The names of the stores that the tests marked `every_store` run against."""

# Collect garbage less often, because there are thousands of modules. Saves 1/14 of the CPU time.
gc.set_threshold(20_000, 20, 50)

# `make test` always uses the same examples, so a change does not fail because of a random example.
hypothesis.settings.register_profile("the same examples", derandomize=True, deadline=None)
hypothesis.settings.load_profile("the same examples")

SHARED_LOADER, SERVICE_LOADER = create_loader(), client._Loader()  # noqa: SLF001
"""The loaders of S3's model, for aiobotocore's sessions in general and for the service's own."""


def _share_models(session: object) -> None:
    """Share one loader between all sessions, because loading S3's model is the slowest step.

    Not for botocore's own sessions: a client modifies the model, and the proxy needs the original.
    """
    if isinstance(session, AioSession):
        session.register_component("data_loader", SHARED_LOADER)


botocore.register_initializer(_share_models)
client._Loader = lambda: SERVICE_LOADER  # type: ignore[assignment,misc]  # noqa: SLF001

# The stores use plain HTTP, and reading the certificates takes 20 ms for each client.
httpsession.get_cert_path = lambda verify: None  # type: ignore[attr-defined]  # noqa: ARG005

for _name in [name for name in os.environ if name.startswith(("AWS_", "HISTORY_", "OTEL_"))]:
    del os.environ[_name]


class _Xdist:
    """Hooks of pytest-xdist. They are registered separately, because it may be turned off."""

    def pytest_configure_node(self, node: Any) -> None:
        """Pass the chosen store to a worker. Its environment no longer has the variables."""
        chosen = node.config.stash[CHOSEN_STORE]
        node.workerinput["store"] = chosen and asdict(chosen)


def pytest_configure(config: pytest.Config) -> None:
    if sys.version_info >= (3, 15):
        # Warnings of Python versions that are newer than this project do not fail its tests.
        config.addinivalue_line("filterwarnings", "default")
    config.stash[EVERY_STORE] = chosen_stores(os.environ.get("STORES", ""))
    if hasattr(config, "workerinput"):
        store = config.workerinput["store"]
        config.stash[CHOSEN_STORE] = store and Store(**store)
        return
    config.stash[CHOSEN_STORE] = FROM_ENVIRONMENT
    if FROM_ENVIRONMENT and (problem := stores.connection_problem(FROM_ENVIRONMENT)):
        raise pytest.UsageError(problem)
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_Xdist())


def pytest_report_header(config: pytest.Config) -> str:
    chosen = config.stash[CHOSEN_STORE]
    if chosen:
        return f"store: {chosen.endpoint_url} (from AWS_ENDPOINT_URL_S3), for all tests"
    names = config.stash[EVERY_STORE]
    return f"stores: {', '.join(names)}, each started by the tests on a free port of 127.0.0.1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason for skipped tests once, with the number of tests."""
    reasons = Counter(str(report.longrepr[2]) for report in _skipped(terminalreporter))
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count} tests: {reason.removeprefix('Skipped: ')}")
    if reasons and os.environ.get("CI") == "true":
        terminalreporter.line("CI is true, so this fails the run.")


FIRST = [
    Path(__file__).parent / name
    for name in (
        "docs/test_readme.py",
        "s3/test_storms.py",
        "cli/test_cli.py",
        "end_to_end/test_kill.py",
        "http/server/test_drain.py",
    )
]
"""The modules with the slowest tests run first, so that no worker starts one of them at the end."""

assert all(path.is_file() for path in FIRST), "FIRST names a module that does not exist"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not _needs_tags_without_any(item)]
    items.sort(key=lambda item: item.path not in FIRST)


def _needs_tags_without_any(item: pytest.Item) -> bool:
    """Return whether a test is about object tags, but its store keeps records in metadata."""
    parameters = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    about_tags = item.get_closest_marker("only_tags") or any(
        str(value).endswith("ObjectTagging") for value in parameters.values()
    )
    return bool(about_tags) and parameters.get("store") in METADATA_STORES


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run in CI if a test was skipped, because CI installs everything."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter and _skipped(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped(terminalreporter: pytest.TerminalReporter) -> list[Any]:
    return list(terminalreporter.stats.get("skipped", []))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `every_store` against each store in STORES, all others against moto.

    Those marked `both_records` run with records in tags and in metadata.
    """
    if "store" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.stash[CHOSEN_STORE]
    names = ["environment"] if chosen else ["moto"]
    if not chosen and metafunc.definition.get_closest_marker("every_store"):
        names = metafunc.config.stash[EVERY_STORE]
    elif not chosen and metafunc.definition.get_closest_marker("both_records"):
        names = ["moto", "moto_metadata"]
    metafunc.parametrize(
        "store",
        # The tests of a slow store share a worker, so that it is started only once.
        [pytest.param(name, marks=XDIST_GROUPS.get(name, ())) for name in names],
        indirect=True,
        scope="session",
    )


@pytest.fixture(scope="session", autouse=True)
def _no_key_leaks() -> Iterator[None]:
    """No output of a service, in any test, may contain a signing key or an upload token."""
    with LEAK_DETECTOR.search_logs():
        yield
    findings = LEAK_DETECTOR.findings
    counts = dict(LEAK_DETECTOR.search_counts)
    print(f"\nsearched for {LEAK_DETECTOR.key_count} keys and tokens, in {counts}: {findings}")
    assert not findings, "\n".join(findings)


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    """For tests that configure the logging of this process."""
    root, service_logger = logging.getLogger(), logging.getLogger("service")
    handlers, levels = root.handlers[:], (root.level, service_logger.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    service_logger.setLevel(levels[1])


@pytest.fixture(scope="session")
def get_store() -> Iterator[Callable[[str], Store]]:
    """Return a store by its name. It is started for the first test, and stopped at the end.

    If the store is not installed, skip the test.
    """
    with ExitStack() as running:
        started: dict[str, Store | str] = {}

        def get(name: str) -> Store:
            if name not in started:
                try:
                    started[name] = running.enter_context(getattr(stores, name)())
                except stores.NotInstalled as error:
                    started[name] = str(error)
            store = started[name]
            if isinstance(store, str):
                pytest.skip(store)
            return store

        yield get


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, get_store: Callable[[str], Store]) -> Store:
    """The S3 server of this test."""
    return request.config.stash[CHOSEN_STORE] or get_store(request.param)


@pytest.fixture(scope="session")
def s3(store: Store) -> Any:
    return s3_client(store)


@pytest.fixture
def start_service(store: Store, s3: Any) -> Iterator[StartService]:
    """A function that starts services. They end with the test."""
    with ExitStack() as running:

        def start(
            *,
            endpoint_url: str | None = None,
            clock: Callable[[], float] | None = None,
            **settings: object,
        ) -> Service:
            return running.enter_context(
                running_service(store, s3, endpoint_url=endpoint_url, clock=clock, **settings)
            )

        yield start


@pytest.fixture(scope="session")
def service(store: Store, s3: Any) -> Iterator[Service]:
    """A service with the smallest part size, shared by all tests with the same store."""
    config = Settings(bucket=f"history-{uuid4()}")
    init_bucket(store, config)
    with running_service(store, s3, bucket=config.bucket, part_size=SMALL_PART) as running:
        yield running
