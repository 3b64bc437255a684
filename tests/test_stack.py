"""The topology of localstack.yml: the file itself, `make stack`, and replicas that come and go."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from service.cli import main
from service.settings import Settings
from tests import stack, stores
from tests.clients import sign, until
from tests.conftest import installed
from tests.locks import pinned_here
from tests.stack import ROOT, Replica, Stack
from tests.stores import Store
from tests.test_cli import clean_environment

MIB = 1 << 20
KEY = "a signing key"
CHECK = [sys.executable, "-m", "check_jsonschema"]


# -- localstack.yml -------------------------------------------------------------------------------


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "localstack.yml").read_text())
    return loaded


def test_it_is_a_compose_file() -> None:
    """By the Compose specification's JSON Schema, as check-jsonschema brings it along."""
    checked = subprocess.run(
        [*CHECK, "--builtin-schema", "vendor.compose-spec", ROOT / "localstack.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_its_services_are_what_is_here(compose: dict[str, Any]) -> None:
    services = compose["services"]
    version = pinned_here("requirements/localstack.txt")["localstack-core"]
    assert services["localstack"]["image"] == f"localstack/localstack:{version}"
    for name in ("init-bucket", "history-1", "history-2"):
        variables = {it for it in services[name]["environment"] if it.startswith("HISTORY_")}
        assert {it.removeprefix("HISTORY_").lower() for it in variables} <= set(
            Settings.model_fields
        )
        assert services[name]["command"][0] in main.commands
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
        assert services[name]["read_only"]
    assert services["history-1"] == services["history-2"]


def test_each_service_waits_for_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    waits = {
        (name, needed): condition["condition"]
        for name, service in services.items()
        for needed, condition in service.get("depends_on", {}).items()
    }
    assert waits == {
        ("init-bucket", "localstack"): "service_healthy",
        ("history-1", "init-bucket"): "service_completed_successfully",
        ("history-2", "init-bucket"): "service_completed_successfully",
        ("nginx", "history-1"): "service_healthy",
        ("nginx", "history-2"): "service_healthy",
    }
    for _, needed in waits:
        assert needed == "init-bucket" or "healthcheck" in services[needed]


def test_it_grants_the_time_that_draining_takes(compose: dict[str, Any]) -> None:
    config = Settings(bucket="a-bucket")
    for name in ("history-1", "history-2", "nginx"):
        grace = int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace >= config.drain_delay + config.drain_timeout + 5, name


def test_nginx_there_has_the_very_same_files(compose: dict[str, Any]) -> None:
    nginx = compose["services"]["nginx"]
    assert nginx["ports"] == ["5558:5558"]
    assert nginx["volumes"] == ["./infra/nginx:/etc/nginx:ro"]
    assert nginx["entrypoint"][1:] == [
        *stack.command("nginx", "/tmp")[1:3],
        *["-c", "/etc/nginx/nginx.conf", "-e", "stderr", "-g", "daemon off;"],
    ]
    assert (stack.NGINX / "listen.conf").read_text().endswith("\nlisten 5558;\n")
    upstream = (stack.NGINX / "upstream.conf").read_text()
    replicas = re.findall(r"server (\S+):5558 ", upstream)
    assert replicas == [name for name in compose["services"] if name.startswith("history-")]


# -- make stack -----------------------------------------------------------------------------------


@pytest.mark.xdist_group("localstack")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)]
)
def test_make_stack(tmp_path: Path, number: signal.Signals) -> None:
    """It serves, stops cleanly, and leaves neither a process nor a file behind."""
    installed(stack.find_nginx)
    installed(stores.localstack_python)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    output = tmp_path / "output.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.stack"],
            cwd=ROOT,
            env=clean_environment(
                **{name: os.environ[name] for name in ["LOCALSTACK_VENV"] if name in os.environ},
                HISTORY_PORT="0",
                HISTORY_DRAIN_DELAY="1s",
                TMPDIR=str(temporary),
            ),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with process:
        try:
            url = ready(process, output)
            bundle = os.urandom(9 * MIB)
            with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
                bundle_id = http.post("/upload", content=bundle).text
                answer = http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
                assert answer.content == bundle
                assert http.get("/readyz").status_code == 404
            assert descendants(process.pid)
            process.send_signal(number)
            assert process.wait(60) == 0, output.read_text()
        finally:
            process.kill()
    assert not processes_with(str(temporary))
    assert not list(temporary.iterdir())
    assert bundle_id not in output.read_text()


def ready(process: subprocess.Popen[bytes], output: Path) -> str:
    """The URL that it prints."""
    deadline = time.monotonic() + 80
    while not (found := re.search(r"server on (\S+),", output.read_text())):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    return found[1]


def descendants(pid: int) -> list[str]:
    return subprocess.run(
        ["pgrep", "--parent", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()


def processes_with(text: str) -> list[str]:
    """Command lines and environments of all processes that have it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in told:
            found.append(told.decode(errors="replace"))
    return found


def test_without_nginx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(stack, "SEARCHED", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HISTORY_PORT", "0")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert stack.main() == 1
    assert capsys.readouterr().err == (
        "Error: nginx is not installed: apt-get install nginx-light\n"
    )


# -- Replicas that come and go --------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nginx and the replicas log."""
    return tmp_path_factory.mktemp("stack") / "output.log"


@pytest.fixture(scope="module")
def running(store: Store, output: Path) -> Iterator[Stack]:
    installed(stack.find_nginx)
    variables = {
        "HISTORY_BUCKET": f"history-{uuid4()}",
        "HISTORY_PART_SIZE": "5MiB",
        "HISTORY_DRAIN_DELAY": "3s",
        "HISTORY_LOG_LEVEL": "warning",
    }
    with output.open("ab") as log, stack.stack(store, variables, output=log) as started:
        yield started


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    "bundles", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_what_one_replica_took_the_other_has_at_once(running: Stack, bundles: int) -> None:
    one, other = (
        httpx.Client(base_url=replica.url, trust_env=False, timeout=30)
        for replica in running.replicas
    )
    with one, other:
        for number in range(bundles):
            bundle = os.urandom(6 * MIB if number % 25 == 0 else 2000)
            bundle_id = one.post("/upload", content=bundle).text
            answer = other.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert answer.status_code == 200, f"bundle {number}: {answer.text}"
            assert answer.content == bundle
            one, other = other, one


@dataclass
class Load:
    """Clients that upload, fetch in every way, and delete, and note whatever went wrong.

    What failed they try once more, when they are told to. Each has an address of its own, as nginx
    has limits for each.
    """

    url: str
    transfers: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    """By the request's id, what became of it."""
    hopeless: list[str] = field(default_factory=list)
    """What the second try did not mend."""
    kept: dict[str, bytes] = field(default_factory=dict)
    enough: threading.Event = field(default_factory=threading.Event)
    clients: list[Future[None]] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.transfers.total()

    def run(self, client: int) -> None:
        dice = random.Random(client)
        transport = httpx.HTTPTransport(local_address=f"127.0.1.{client + 1}")
        with httpx.Client(base_url=self.url, transport=transport, timeout=60) as http:
            while not self.enough.is_set():
                self._round_trip(http, dice)

    def _round_trip(self, http: httpx.Client, dice: random.Random) -> None:
        bundle = dice.randbytes(dice.choice([100, 20_000, 20_000, 300_000, 6 * MIB]))
        proof = sign(KEY, bundle)
        bound = {"X-HMAC": proof["X-HMAC"]} if dice.random() < 0.7 else {}
        uploaded = self._ask(http, "POST", "/upload", 200, headers=bound, content=bundle)
        if uploaded is None:
            return
        path = f"/files/{uploaded.text}"
        self.kept[uploaded.text] = bundle
        whole = self._ask(http, "GET", path, 200, headers=proof)
        part = self._ask(http, "GET", path, 206, headers={**proof, "Range": "bytes=10-59"})
        self._ask(http, "HEAD", path, 200, headers=proof)
        for answer, wanted in ((whole, bundle), (part, bundle[10:60])):
            if answer is not None and answer.content != wanted:
                self.hopeless.append(f"GET: {len(answer.content)} bytes of {len(wanted)}")
        if dice.random() < 0.3:
            del self.kept[uploaded.text]
            self._ask(http, "DELETE", path, 204, headers=proof)

    def _ask(
        self, http: httpx.Client, method: str, path: str, wanted: int, **options: Any
    ) -> httpx.Response | None:
        # Of a DELETE that was cut short, 404 tells the second time that it is done.
        for good in ({wanted}, {wanted, 404} if method == "DELETE" else {wanted}):
            request_id = uuid4().hex
            options["headers"] = {**options["headers"], "X-Request-Id": request_id}
            try:
                answer = http.request(method, path, **options)
            except httpx.TransportError as error:
                self.errors[request_id] = f"{method}: {error!r}"
                continue
            self.transfers[method] += 1
            if answer.status_code in good:
                return answer
            self.errors[request_id] = f"{method}: {answer.status_code} {answer.text[:200]}"
            # At once, a POST may meet what nginx still keeps open to a replica that was killed.
            time.sleep(float(answer.headers.get("Retry-After", 0)))
        self.hopeless.append(self.errors[request_id])
        return None


def asked(output: Path, request_id: str) -> str:
    """Which replicas nginx asked."""
    line = re.compile(rf'"request_id":"{request_id}",.*"replica":"([^"]*)"')
    found: list[str] = []

    def look() -> bool:
        found[:] = line.findall(output.read_text())
        return bool(found)

    until(look)
    [replicas] = found
    return replicas


def leave(replica: Replica, number: signal.Signals) -> None:
    """Let a replica go, and come back."""
    replica.send(number)
    code = replica.wait()
    assert number == signal.SIGKILL or code == 0
    replica.start()
    replica.ready()


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(
    ("transfers", "kills"),
    [
        (200, 0),
        pytest.param(5000, 1, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_replicas_leave_in_turn_and_no_client_notices(
    running: Stack, output: Path, transfers: int, kills: int
) -> None:
    """But those whose transfer runs on a replica that is killed; a second try then succeeds."""
    load = Load(running.url)
    clients = 6
    with ThreadPoolExecutor(clients) as pool:
        load.clients += [pool.submit(load.run, client) for client in range(clients)]
        try:
            wait(load, transfers // 4)
            leave(running.replicas[0], signal.SIGTERM)
            wait(load, transfers // 2)
            leave(running.replicas[1], signal.SIGTERM)
            assert load.errors == {}
            if kills:
                wait(load, transfers * 3 // 4)
                leave(running.replicas[0], signal.SIGKILL)
            wait(load, transfers)
        finally:
            load.enough.set()
    for client in load.clients:
        client.result()
    print(f"\n{dict(load.transfers)}, kept {len(load.kept)}, errors: {load.errors}")
    assert load.hopeless == []
    assert len(load.errors) <= clients * kills
    for request_id, error in load.errors.items():
        assert f":{running.replicas[0].port}" in asked(output, request_id), error
    with httpx.Client(base_url=running.replicas[1].url, trust_env=False, timeout=60) as http:
        for bundle_id, bundle in load.kept.items():
            answer = http.get(f"/files/{bundle_id}", headers=sign(KEY, bundle))
            assert answer.status_code == 200
            assert answer.content == bundle


def wait(load: Load, transfers: int) -> None:
    deadline = time.monotonic() + 600
    while load.done < transfers:
        assert time.monotonic() < deadline
        assert not any(client.done() for client in load.clients)
        time.sleep(0.05)
