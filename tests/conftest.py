"""A real service on a free port, in front of a real S3 server, for every test that wants one."""

import asyncio
import gc
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import boto3
import botocore
import httpx
import hypothesis
import pytest
from aiobotocore import httpsession
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.loaders import create_loader

from service import bucket, client, server
from service.app import create_app
from service.client import connect
from service.readiness import Drain
from service.settings import Settings
from tests import stores
from tests.leaks import LEAKS
from tests.stores import Store

FROM_ENVIRONMENT = stores.from_environment()
"""The store named by AWS_ENDPOINT_URL_S3, as only the controlling process of xdist sees it."""

CHOSEN_STORE = pytest.StashKey[Store | None]()
"""The same store in every process: with it, every test runs against that one."""

EVERY_STORE = pytest.StashKey[list[str]]()
"""The names of the stores that the tests marked `every_store` run against."""

STORES = ("moto", "localstack", "ceph")
"""The names of the stores that the tests can start."""


def chosen_stores(variable: str) -> list[str]:
    """Read the variable STORES: all stores if it is empty. Raises `UsageError`."""
    names = variable.split(",") if variable else list(STORES)
    if not set(STORES).issuperset(names):
        raise pytest.UsageError(f"STORES is some of {','.join(STORES)}, not {variable}")
    return names


SMALL_PART = 5 << 20
"""S3 takes none smaller: most tests use it, as it is quicker to fill than the default."""

# Thousands of modules are looked through less often: a fourteenth of the CPU time.
gc.set_threshold(20_000, 20, 50)

# No example is new in `make test`: what a run finds by chance would not be its author's fault.
hypothesis.settings.register_profile("the same examples", derandomize=True, deadline=None)
hypothesis.settings.load_profile("the same examples")

GROUPS = {name: pytest.mark.xdist_group(name) for name in ("localstack", "ceph")}

MODELS, OURS = create_loader(), client._Loader()  # noqa: SLF001
"""What reads S3's model for others, and for services."""

T = TypeVar("T")

only_ci = pytest.mark.skipif(
    os.environ.get("CI") != "true",
    reason="only CI tests how tests, installation and benchmark work: set CI=true",
)
"""For tests of the tools with which this project is made; they take half a minute."""

INFRA_TOOLS = Path(__file__).parents[1] / ".venv-infra" / "bin"


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


@dataclass
class Service:
    """A running service, and eyes to see what it did to its bucket."""

    url: str
    bucket: str
    prefix: str
    http: httpx.Client = field(repr=False)
    s3: Any = field(repr=False)
    running: server.Server = field(repr=False)

    def many(self) -> httpx.AsyncClient:
        """A client of as many connections as are wanted."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            base_url=self.url, timeout=280, trust_env=False, verify=False, limits=limits
        )

    def upload(self, content: bytes, hmac: str | None = None) -> str:
        headers = {} if hmac is None else {"X-HMAC": hmac}
        answer = self.http.post("/upload", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.text

    def fetch(self, bundle_id: str, proof: Mapping[str, str] | None = None) -> httpx.Response:
        return self.http.get(f"/files/{bundle_id}", headers=proof)

    def head(self, bundle_id: str, proof: Mapping[str, str] | None = None) -> httpx.Response:
        return self.http.head(f"/files/{bundle_id}", headers=proof)

    def metrics(self) -> dict[str, float]:
        """Return every sample that the service exposes, by its name with labels."""
        answer = self.http.get("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        samples = re.findall(r"^(history_\S+) (\S+)$", answer.text, re.MULTILINE)
        return {name: float(value) for name, value in samples}

    def objects(self) -> list[str]:
        listing = self.s3.list_objects_v2(Bucket=self.bucket)
        return [found["Key"] for found in listing.get("Contents", [])]

    def clear(self) -> None:
        for key in self.objects():
            self.s3.delete_object(Bucket=self.bucket, Key=key)

    def multipart_uploads(self) -> list[str]:
        listing = self.s3.list_multipart_uploads(Bucket=self.bucket)
        return [found["Key"] for found in listing.get("Uploads", [])]

    def abort_all(self) -> None:
        for found in self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []):
            self.s3.abort_multipart_upload(
                Bucket=self.bucket, Key=found["Key"], UploadId=found["UploadId"]
            )

    def tags(self, bundle_id: str) -> dict[str, str]:
        tagging = self.s3.get_object_tagging(Bucket=self.bucket, Key=f"{self.prefix}{bundle_id}")
        return {tag["Key"]: tag["Value"] for tag in tagging["TagSet"]}

    def put_tags(self, bundle_id: str, tags: Mapping[str, str]) -> None:
        where = {"Bucket": self.bucket, "Key": f"{self.prefix}{bundle_id}"}
        if not tags:
            self.s3.delete_object_tagging(**where)
            return
        tag_set = [{"Key": name, "Value": value} for name, value in tags.items()]
        self.s3.put_object_tagging(**where, Tagging={"TagSet": tag_set})


class Serve(Protocol):
    """Start a service in a bucket of its own, or a given one.

    Settings go by their names without HISTORY_; `endpoint_url` is another way to the store.
    """

    def __call__(
        self,
        *,
        endpoint_url: str | None = None,
        clock: Callable[[], float] | None = None,
        **settings: object,
    ) -> Service: ...


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


FIRST = ("test_readme.py", "test_storms.py", "test_cli.py", "test_kill.py", "test_drain.py")
"""Their tests take longest, so that no worker is left with one of them when all others are done."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


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


def installed(find: Callable[[], T]) -> T:
    """Return what `find` finds. Where that is not installed, the test is skipped."""
    try:
        return find()
    except stores.NotInstalled as error:
        pytest.skip(str(error))


def find_tool(name: str) -> Path:
    """One of those that `make infra-tools` installs. Raises `NotInstalled`."""
    if not (INFRA_TOOLS / name).exists():
        raise stores.NotInstalled(f"{name} is not installed: run `make infra-tools`")
    return INFRA_TOOLS / name


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it, without anybody's settings."""
    return subprocess.run(
        [installed(lambda: find_tool(name)), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": os.devnull},
        capture_output=True,
        text=True,
        check=False,
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


def s3_client(store: Store) -> Any:
    """A client of another make than the service's, to look behind it."""
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint_url,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name=store.region,
        config=Config(request_checksum_calculation="when_required"),
    )


@contextmanager
def aws_environment(store: Store, endpoint_url: str | None = None) -> Iterator[dict[str, str]]:
    """The variables through which a service finds its store, in this process for a while."""
    variables = {
        "AWS_ENDPOINT_URL_S3": endpoint_url or store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "AWS_DEFAULT_REGION": store.region,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


def make_bucket(store: Store, settings: Settings) -> list[str]:
    """Do what `init-bucket` does."""

    async def prepare() -> list[str]:
        async with connect(settings.region) as client:
            lines = bucket.prepare(
                client,
                bucket=settings.bucket,
                prefix=settings.prefix,
                retention=settings.retention,
            )
            return [line async for line in lines]

    with aws_environment(store):
        return asyncio.run(prepare())


@contextmanager
def running_service(
    store: Store,
    s3: Any,
    *,
    endpoint_url: str | None = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> Iterator[Service]:
    """The service itself, in a thread of this process, in a new bucket unless one is given."""
    if "bucket" not in settings:
        settings["bucket"] = f"history-{uuid4()}"
        s3.create_bucket(Bucket=settings["bucket"])
    config = Settings(**settings)
    drain = Drain()
    app = create_app(config, drain=drain, clock=clock or time.time)
    started = threading.Event()
    with server.listen("127.0.0.1", 0) as listener:
        running = server.Server(
            app,
            listener,
            drain,
            drain_delay=0,
            drain_timeout=10,
            read_timeout=config.read_timeout,
            ready=started.set,
        )
        thread = threading.Thread(target=running.run)
        with aws_environment(store, endpoint_url):
            thread.start()
            assert started.wait(20)
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        try:
            # It reads no certificates, which would take longer than the service's own start.
            with httpx.Client(
                base_url=url, timeout=60, trust_env=False, verify=False, event_hooks=LEAKS.hooks
            ) as http:
                yield Service(url, config.bucket, config.prefix, http, s3, running)
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


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
