"""The commands `serve`, `init-bucket`, `check`, `token` and `sweep`.

`__main__` and the installed script run them. They exit with 1 after a failure, and with 2 if an
argument or a setting is wrong.
"""

import asyncio
import ctypes
import dataclasses
import gc
import json
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import click

from service import __version__, settings
from service.app import create_app
from service.bundles.memory import MAX_CHUNK
from service.drain import Drain
from service.errors import BucketError, ListenError, SettingsError
from service.http.auth.authorizer import hash_token
from service.http.server.listener import listen, url
from service.http.server.server import Server
from service.s3 import devstore
from service.s3.bucket import check, initialization
from service.s3.bucket.findings import Finding
from service.s3.bucket.sweep import CONCURRENCY, Sweep
from service.s3.client import connect
from service.telemetry import logs, tracing

BANNER = """
  message-history-server {version} on {url}
{dev}
  Upload a bundle, and download it with its proof:

    printf 'an encrypted bundle' > bundle.aes
    HMAC=$(openssl dgst -sha256 -hmac my-signing-key bundle.aes | sed 's/.*= //')
    ID=$(curl -sS --fail-with-body -F file=@bundle.aes -H "X-HMAC: $HMAC" {url}/upload)
    curl -sS --fail-with-body -H "X-HMAC: $HMAC" -H "X-SIGNING-KEY: my-signing-key" \\
      --output fetched.aes {url}/files/$ID && cmp bundle.aes fetched.aes && echo identical
"""

DEV_NOTICE = """
  DEVELOPMENT: bundles are kept in the memory of this process, and LOST when it exits.
"""

SETTINGS_HELP = (
    "Set these environment variables (docs/settings.md lists all of them), or run "
    "`message-history-server serve --dev`, which needs none."
)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3), from <malloc.h>."""

_MAX_INT = 2**31 - 1


@click.group(invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Serve XMTP message histories from an S3 bucket.

    Settings are environment variables named HISTORY_*. AWS's own variables
    (AWS_PROFILE, AWS_ENDPOINT_URL_S3 …) select the S3 endpoint and the
    credentials. Without a command, `serve` runs.
    """
    if context.invoked_subcommand is None:
        context.invoke(serve)


@main.command()
@click.option("--dev", is_flag=True, help="Use an embedded S3 store in memory, lost on exit.")
def serve(*, dev: bool = False) -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    if dev:
        devstore.isolate()
    with _report_settings_errors() as step:
        with step():
            config = _load_settings(**(devstore.SETTINGS if dev else {}))
        with step():
            tracer = tracing.open_tracer()
    drain = Drain()
    app = create_app(config, drain=drain, tracer=tracer)
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(listen(config.host, config.port))
        except ListenError as error:
            raise click.ClickException(str(error)) from error
        if dev:
            stack.enter_context(_dev_store())
            asyncio.run(_initialize_bucket(config))

        def ready() -> None:
            _tune_garbage_collection()
            _keep_freed_memory(config.memory_budget)
            notice = DEV_NOTICE if dev else ""
            click.echo(BANNER.format(version=__version__, url=url(listener), dev=notice))
            sys.stdout.flush()

        Server(
            app,
            listener,
            drain,
            drain_delay=config.drain_delay,
            drain_timeout=config.drain_timeout,
            read_timeout=config.read_timeout,
            ready=ready,
        ).run()


@main.command("init-bucket")
def init_bucket() -> None:
    """Create the bucket, or update its lifecycle, public access block and encryption.

    Safe to repeat. Settings that the store does not offer are reported and skipped.
    """
    with _report_settings_errors():
        config = _load_settings()
    asyncio.run(_initialize_bucket(config))


@main.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON array.")
def check_bucket(*, as_json: bool) -> None:
    """Check the bucket, and say how to fix each problem; exit 1 if there is one.

    Checks credentials, region, clock, bucket, every permission (on an object that is removed
    again), lifecycle, public access and versioning. Changes nothing.
    """
    with _report_settings_errors():
        config = _load_settings()
    findings = asyncio.run(_check_bucket(config, print_findings=not as_json))
    if as_json:
        lines = [{"ok": finding.ok, **dataclasses.asdict(finding)} for finding in findings]
        click.echo(json.dumps(lines, indent=2))
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


@main.command("token")
@click.argument("name")
def make_token(*, name: str) -> None:
    """Make a token for uploads, called NAME in logs and metrics.

    The token is shown once. HISTORY_UPLOAD_TOKENS holds its hash only, and several tokens separated
    by commas.
    """
    token = secrets.token_urlsafe(32)
    line = f"{name}:{hash_token(token)}"
    if not settings.is_upload_token(line):
        raise click.BadParameter(
            "should be up to 64 letters, digits, dots, hyphens and underscores, and not jwt",
            param_hint="NAME",
        )
    click.echo(f"token: {token}")
    click.echo(f"HISTORY_UPLOAD_TOKENS={line}")


@main.command("sweep")
@click.option("--dry-run", is_flag=True, help="Only count, remove nothing.")
@click.option(
    "--rate",
    default=500.0,
    type=click.FloatRange(min=1),
    show_default=True,
    help="Requests to S3 per second, at most.",
)
def sweep_bucket(*, dry_run: bool, rate: float) -> None:
    """Remove expired bundles and what abandoned uploads have left behind.

    For stores without a lifecycle, or to free their space sooner. Safe to repeat, and to run
    several times at once.
    """
    with _report_settings_errors():
        config = _load_settings()
    asyncio.run(_sweep(config, rate=rate, dry_run=dry_run))


def _tune_garbage_collection() -> None:
    """Make the garbage collector skip everything that exists now, and run less often.

    This is mostly botocore's models, which are never freed. Checking them again and again takes a
    tenth of the CPU time of a transfer. With a thousand uploads, a full collection stopped the
    event loop for up to 0.45 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _keep_freed_memory(size: int) -> None:
    """Let the process keep up to `size` bytes that transfers have freed, for the next transfers.

    glibc otherwise returns them to the kernel, which has to clear every page when it is used again.
    That takes a tenth of the CPU time of a transfer. Other C libraries have no mallopt(3).
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Setting one of the two stops glibc from adapting the other.
        mallopt(_M_MMAP_THRESHOLD, 4 * MAX_CHUNK)
        mallopt(_M_TRIM_THRESHOLD, min(size, _MAX_INT))


async def _check_bucket(config: settings.Settings, *, print_findings: bool) -> list[Finding]:
    findings = []
    async with connect(settings.aws_region()) as client:
        async for finding in check.check_bucket(
            client,
            bucket=config.bucket,
            prefix=config.prefix,
            retention=config.retention,
            records=config.records,
        ):
            findings.append(finding)
            if print_findings:
                status = "ok   " if finding.ok else "WRONG"
                click.echo(f"{status} {finding.subject}: {finding.message}")
                if finding.remedy is not None:
                    click.echo(f"      → {finding.remedy}")
    return findings


async def _sweep(config: settings.Settings, *, rate: float, dry_run: bool) -> None:
    """Sweep once. On a terminal, the progress is one line that changes."""
    on_terminal = sys.stderr.isatty()
    async with connect(settings.aws_region(), connections=CONCURRENCY) as client:
        sweep = Sweep(
            client,
            bucket=config.bucket,
            prefix=config.prefix,
            records=config.records,
            rate=rate,
            dry_run=dry_run,
        )
        try:
            async for progress in sweep.run():
                if on_terminal:
                    click.echo(f"\r{progress} …", err=True, nl=False)
        except BucketError as error:
            raise click.ClickException(str(error)) from error
    if on_terminal:
        click.echo(err=True)
    click.echo(f"{sweep.progress} {'found' if dry_run else 'removed'}")


async def _initialize_bucket(config: settings.Settings) -> None:
    async with connect(settings.aws_region()) as client:
        try:
            async for line in initialization.initialize(
                client,
                bucket=config.bucket,
                prefix=config.prefix,
                retention=config.retention,
                records=config.records,
            ):
                click.echo(line)
        except BucketError as error:
            raise click.ClickException(str(error)) from error


def _dev_store() -> AbstractContextManager[None]:
    try:
        return devstore.running()
    except ImportError as error:
        raise click.ClickException(
            "--dev needs the embedded S3 store: pip install 'message-history-server[dev]'."
        ) from error


def _load_settings(**defaults: str) -> settings.Settings:
    """Read all settings and configure the log. Raises `SettingsError`, which lists every mistake.

    botocore reads AWS's settings when a client is opened.
    """

    async def open_client() -> None:
        async with connect(settings.aws_region()):
            pass

    with _collected_mistakes() as step:
        with step():
            config = settings.load(**defaults)
        with step():
            asyncio.run(open_client())
    logs.configure(config.log_format, config.log_level)
    return config


@contextmanager
def _collected_mistakes() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yield a context for each step. Raise one `SettingsError` with the mistakes of all steps."""
    mistakes: list[str] = []

    @contextmanager
    def step() -> Iterator[None]:
        try:
            yield
        except SettingsError as error:
            mistakes.extend(error.mistakes)

    yield step
    if mistakes:
        raise SettingsError(mistakes)


@contextmanager
def _report_settings_errors() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """If settings are wrong, print every mistake and exit with code 2."""
    try:
        with _collected_mistakes() as step:
            yield step
    except SettingsError as error:
        for mistake in error.mistakes:
            click.echo(f"Error: {mistake}", err=True)
        click.echo(SETTINGS_HELP, err=True)
        raise SystemExit(2) from error
