"""A real service on a free port, in front of a real S3 server, for every test that wants one."""

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
from tests.support.key_leaks import LEAKS
from tests.support.services.thread import SMALL_PART, Serve, Service, make_bucket, running_service
from tests.support.stores import Store
from tests.support.stores.access import s3_client
from tests.support.stores.selection import GROUPS, chosen_stores

FROM_ENVIRONMENT = stores.from_environment()
"""The store named by AWS_ENDPOINT_URL_S3, as only the controlling process of xdist sees it."""

CHOSEN_STORE = pytest.StashKey[Store | None]()
"""The same store in every process: with it, every test runs against that one."""

EVERY_STORE = pytest.StashKey[list[str]]()
"""The names of the stores that the tests marked `every_store` run against."""

# Thousands of modules are looked through less often: a fourteenth of the CPU time.
gc.set_threshold(20_000, 20, 50)

# No example is new in `make test`: what a run finds by chance would not be its author's fault.
hypothesis.settings.register_profile("the same examples", derandomize=True, deadline=None)
hypothesis.settings.load_profile("the same examples")

MODELS, OURS = create_loader(), client._Loader()  # noqa: SLF001
"""What reads S3's model for others, and for services."""


def _share_models(session: object) -> None:
    """Spare each service's session to read S3's model, which takes it longer than all the rest.

    Not botocore's own sessions: a client edits what it has loaded, as the proxy must not see it.
    """
    if isinstance(session, AioSession):
        session.register_component("data_loader", MODELS)


botocore.register_initializer(_share_models)
client._Loader = lambda: OURS  # type: ignore[assignment,misc]  # noqa: SLF001

# Stores speak plain HTTP here: to read the certificates takes each client 20 ms.
httpsession.get_cert_path = lambda verify: None  # type: ignore[attr-defined]  # noqa: ARG005

for _name in [name for name in os.environ if name.startswith(("AWS_", "HISTORY_"))]:
    del os.environ[_name]


class _Xdist:
    """The hooks of pytest-xdist, registered by themselves as it may be switched off."""

    def pytest_configure_node(self, node: Any) -> None:
        """Hand the chosen store to a worker, whose environment no longer names it."""
        chosen = node.config.stash[CHOSEN_STORE]
        node.workerinput["store"] = chosen and asdict(chosen)


def pytest_configure(config: pytest.Config) -> None:
    if sys.version_info >= (3, 15):
        # What a newer Python warns of is no fault of the person who runs these tests.
        config.addinivalue_line("filterwarnings", "default")
    config.stash[EVERY_STORE] = chosen_stores(os.environ.get("STORES", ""))
    if hasattr(config, "workerinput"):
        handed = config.workerinput["store"]
        config.stash[CHOSEN_STORE] = handed and Store(**handed)
        return
    config.stash[CHOSEN_STORE] = FROM_ENVIRONMENT
    if FROM_ENVIRONMENT and (problem := stores.unreachable(FROM_ENVIRONMENT)):
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
    """Say what is not installed in one line each, and how many tests that leaves out."""
    reasons = Counter(str(report.longrepr[2]) for report in _skipped(terminalreporter))
    if reasons:
        terminalreporter.section("not tried")
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
        "http/test_drain.py",
    )
]
"""Their tests take longest, so that no worker is left with one of them when all others are done."""

assert all(path.is_file() for path in FIRST), "a module of FIRST has another name now"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path not in FIRST)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, everything is installed, so a skipped test fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter and _skipped(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped(terminalreporter: pytest.TerminalReporter) -> list[Any]:
    return list(terminalreporter.stats.get("skipped", []))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `every_store` against each that is chosen, all else against moto."""
    if "store" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.stash[CHOSEN_STORE]
    names = ["environment"] if chosen else ["moto"]
    if not chosen and metafunc.definition.get_closest_marker("every_store"):
        names = metafunc.config.stash[EVERY_STORE]
    metafunc.parametrize(
        "store",
        # Each of the big ones is started once, so its tests share a worker.
        [pytest.param(name, marks=GROUPS.get(name, ())) for name in names],
        indirect=True,
        scope="session",
    )


@pytest.fixture(scope="session", autouse=True)
def _no_leaks() -> Iterator[None]:
    """Nothing that services say, in any test, may hold a signing key."""
    with LEAKS.listening():
        yield
    print(f"\nsearched for {LEAKS.keys} signing keys, in {dict(LEAKS.searched)}: {LEAKS.found}")
    assert not LEAKS.found, "\n".join(LEAKS.found)


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    """For those who configure the logging of a process."""
    root, ours = logging.getLogger(), logging.getLogger("service")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="session")
def get_store() -> Iterator[Callable[[str], Store]]:
    """Each store is started once, when the first test asks for it, and stopped at the end."""
    with ExitStack() as running:
        started: dict[str, Store | str] = {}

        def get(name: str) -> Store:
            if name not in started:
                try:
                    started[name] = running.enter_context(getattr(stores, name)())
                except stores.NotInstalled as error:
                    started[name] = str(error)
            found = started[name]
            if isinstance(found, str):
                pytest.skip(found)
            return found

        yield get


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, get_store: Callable[[str], Store]) -> Store:
    """The S3 server of this test."""
    return request.config.stash[CHOSEN_STORE] or get_store(request.param)


@pytest.fixture(scope="session")
def s3(store: Store) -> Any:
    return s3_client(store)


@pytest.fixture
def serve(store: Store, s3: Any) -> Iterator[Serve]:
    """Start services that end with the test."""
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
    """A service with the smallest parts there are, shared by all tests on the same store."""
    config = Settings(bucket=f"history-{uuid4()}")
    make_bucket(store, config)
    with running_service(store, s3, bucket=config.bucket, part_size=SMALL_PART) as running:
        yield running
