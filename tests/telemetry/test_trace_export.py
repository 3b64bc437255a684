"""The export of spans: OpenTelemetry's variables, wrong ones, and collectors that fail."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from click.testing import CliRunner

from service.bundles.background import CLOSE_TIMEOUT
from service.cli import main
from service.http.server.server import LAST_REQUESTS
from service.settings import Settings
from service.telemetry.otlp import FLUSH_TIMEOUT
from service.telemetry.tracing import open_tracer
from tests.support.clients.signing import sign
from tests.support.polling import wait_until
from tests.support.services.process import COVERAGE_VARIABLES, clean_environment, service_process
from tests.support.services.thread import StartService
from tests.telemetry.collector import Collector, running, trace_id_of

KEY = "the key of an exported bundle"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


pytestmark = pytest.mark.usefixtures("_info_logged")


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector for one test."""
    with running() as collector:
        yield collector


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": " True"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off_by_default_and_can_be_turned_off(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert open_tracer() is None


def test_opentelemetry_is_not_imported_without_an_endpoint() -> None:
    program = (
        "import sys; from service.app import create_app; from service.settings import load;"
        "create_app(load()); print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    environment = clean_environment(HISTORY_BUCKET="a-bucket")
    output = subprocess.check_output([sys.executable, "-c", program], env=environment)
    assert output == b"[]\n"


def test_variables_of_the_sdk_are_honoured(
    start_service: StartService,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "history-eu")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key: the key of a collector")
    before = len(collector.spans)
    service = start_service()
    assert "should be name=value pairs" in caplog.text
    assert "the key of a collector" not in caplog.text
    assert re.fullmatch("[0-9a-f]{32}", trace_id_of(caplog, service.http.get("/")))
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    headers = {"traceparent": f"00-{TRACE[::-1]}-{PARENT}-00"}
    start_service().http.get("/", headers=headers)
    collector.trace(TRACE[::-1], 1)
    assert collector.resource["service.name"] == "history-eu"
    assert len(collector.spans) == before + 1


def has_exports(collector: Collector, count: int) -> bool:
    return collector.exports >= count


def exporter_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("opentelemetry", "service.telemetry"))
    ]


def test_failing_collector_is_logged_once_until_it_works_again(
    start_service: StartService,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    collector.status = 401
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    service = start_service()
    for exports in range(1, 4):
        assert service.http.get("/").status_code == 200
        wait_until(partial(has_exports, collector, exports))
    collector.status = 200
    collector.trace(trace_id_of(caplog, service.http.get("/")), 1)
    wait_until(lambda: len(exporter_messages(caplog)) == 2)
    failure, recovery = exporter_messages(caplog)
    assert failure.startswith("traces cannot be exported; check OTEL_EXPORTER_OTLP_ENDPOINT")
    assert "401" in failure
    assert recovery == "traces are exported again"


@pytest.mark.parametrize("is_hanging", [False, True])
def test_service_works_and_ends_in_time_without_its_collector(
    collector: Collector, capsys: pytest.CaptureFixture[str], *, is_hanging: bool
) -> None:
    """One collector refuses connections. The other accepts them, but does not answer.

    The queue of the SDK is so small that it drops spans.
    """
    collector.hanging = is_hanging
    url = collector.url if is_hanging else "http://127.0.0.1:9"
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_BSP_MAX_QUEUE_SIZE": "8",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
    }
    with (
        service_process("serve", "--dev", **variables) as (service, process, _),
        httpx.Client(base_url=service, trust_env=False) as http,
    ):
        for _ in range(5):
            started = time.monotonic()
            bundle_id = http.post("/upload", content=b"bundle").text
            proof = sign(KEY, b"bundle")
            assert http.get(f"/files/{bundle_id}", headers=proof).content == b"bundle"
            assert time.monotonic() - started < 3
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert FLUSH_TIMEOUT - 0.5 < time.monotonic() - stopped < FLUSH_TIMEOUT + 4
    output = capsys.readouterr().err
    assert output.count("shutdown: the last traces were not exported in time") == 1
    assert output.count("traces cannot be exported") <= 1
    assert 1 <= output.count("Queue full, dropping Span") <= 2
    assert output.count('"logger": "opentelemetry') <= 2


def test_flush_fits_into_the_time_for_a_graceful_shutdown() -> None:
    """The image and the Kubernetes files give the process 45 s."""
    fields = Settings.model_fields
    drain_time = fields["drain_delay"].default + fields["drain_timeout"].default
    assert drain_time + LAST_REQUESTS + CLOSE_TIMEOUT + FLUSH_TIMEOUT < 45


def test_missing_extra_is_reported_at_the_start() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; from service.cli import main; main()"
    )
    variables = {"HISTORY_PORT": "0", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-c", program, "serve", "--dev"],
        env=clean_environment(**COVERAGE_VARIABLES, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == (
        "Error: OTEL_EXPORTER_OTLP_ENDPOINT: needs the OpenTelemetry SDK: run pip install "
        "'message-history-server[otel]', or set OTEL_SDK_DISABLED=true"
    )
    assert result.stderr.count("\n") == 2


WRONG_VARIABLES = [
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
        "OTEL_EXPORTER_OTLP_ENDPOINT: should be a URL such as http://collector:4318",
    ),
    (
        {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        },
        "OTEL_EXPORTER_OTLP_PROTOCOL: should be http/protobuf; it is 'grpc'",
    ),
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "0"},
        "OpenTelemetry's settings: max_queue_size must be a positive integer.",
    ),
]


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize(("variables", "message"), WRONG_VARIABLES)
def test_wrong_variables_are_reported_at_the_start(variables: dict[str, str], message: str) -> None:
    environment = {"HISTORY_BUCKET": "a-bucket", "AWS_DEFAULT_REGION": "us-east-1", **variables}
    result = CliRunner().invoke(main, ["serve"], env=environment)
    assert result.exit_code == 2
    assert f"Error: {message}" in result.stderr.splitlines()
