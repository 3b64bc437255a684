"""The commands: arguments and settings in, one call, an exit code out."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import click

from service import __version__, bucket, check, devstore, logs, server, settings
from service.app import create_app
from service.client import connect
from service.errors import AddressInUse, BucketError, SettingsError
from service.readiness import Drain

BANNER = """
  message-history-server {version} on {url}
{dev}
  Upload a bundle, and fetch it back with its proof:

    printf 'an encrypted bundle' > bundle.aes
    HMAC=$(openssl dgst -sha256 -hmac my-signing-key bundle.aes | sed 's/.*= //')
    ID=$(curl -sS --fail-with-body -F file=@bundle.aes -H "X-HMAC: $HMAC" {url}/upload)
    curl -sS --fail-with-body -H "X-HMAC: $HMAC" -H "X-SIGNING-KEY: my-signing-key" \\
      --output fetched.aes {url}/files/$ID && cmp bundle.aes fetched.aes && echo identical
"""

DEV_NOTICE = """
  DEVELOPMENT: bundles are held in this process's memory and VANISH when it exits.
"""

SETTINGS_HELP = (
    "Set these in the environment (docs/settings.md lists them all), or run "
    "`message-history-server serve --dev`, which needs none."
)


@click.group(invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Serve XMTP message histories out of an S3 bucket.

    Settings are environment variables named HISTORY_*; AWS's own (AWS_PROFILE,
    AWS_ENDPOINT_URL_S3 …) say where S3 is. Without a command, `serve` is run.
    """
    if context.invoked_subcommand is None:
        context.invoke(serve)


@main.command()
@click.option("--dev", is_flag=True, help="Bring an S3 along, in memory; bundles vanish on exit.")
def serve(*, dev: bool = False) -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    if dev:
        devstore.isolate()
    with _mistakes_named():
        config = settings.load(**(devstore.SETTINGS if dev else {}))
        asyncio.run(_check_aws(config))
    logs.configure(config.log_format, config.log_level)
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(server.listen(config.host, config.port))
        except AddressInUse as error:
            raise click.ClickException(str(error)) from error
        if dev:
            stack.enter_context(_dev_store())
            asyncio.run(_prepare_bucket(config))
        url = server.url(listener)

        def ready() -> None:
            notice = DEV_NOTICE if dev else ""
            click.echo(BANNER.format(version=__version__, url=url, dev=notice))
            sys.stdout.flush()

        drain = Drain()
        server.Server(
            create_app(config, drain=drain),
            listener,
            drain,
            drain_delay=config.drain_delay,
            drain_timeout=config.drain_timeout,
            read_timeout=config.read_timeout,
            ready=ready,
        ).run()


@main.command("init-bucket")
def init_bucket() -> None:
    """Make the bucket, or bring it up to date: lifecycle, public-access block, encryption.

    Safe to repeat. What a store does not offer is said and passed over.
    """
    with _mistakes_named():
        config = settings.load()
        logs.configure(config.log_format, config.log_level)
        asyncio.run(_prepare_bucket(config))


@main.command("check")
@click.option("--json", "as_json", is_flag=True, help="Answer a JSON array of findings.")
def check_bucket(*, as_json: bool) -> None:
    """Tell what is right and wrong with the bucket, and what to do; exit 1 if anything is wrong.

    Credentials, region, clock, bucket, every permission (tried on a probe that is removed again),
    lifecycle, public access and versioning are looked at. Nothing is changed.
    """
    with _mistakes_named():
        config = settings.load()
        logs.configure(config.log_format, config.log_level)
        findings = asyncio.run(_examine_bucket(config, said=not as_json))
    if as_json:
        lines = [{"ok": finding.ok, **dataclasses.asdict(finding)} for finding in findings]
        click.echo(json.dumps(lines, indent=2))
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


async def _examine_bucket(config: settings.Settings, *, said: bool) -> list[check.Finding]:
    findings = []
    async with connect(config.region) as client:
        async for finding in check.examine(
            client,
            bucket=config.bucket,
            prefix=config.prefix,
            retention=config.retention,
        ):
            findings.append(finding)
            if said:
                click.echo(
                    f"{'ok   ' if finding.ok else 'WRONG'} {finding.subject}: {finding.words}"
                )
                if finding.remedy is not None:
                    click.echo(f"      → {finding.remedy}")
    return findings


async def _prepare_bucket(config: settings.Settings) -> None:
    async with connect(config.region) as client:
        try:
            async for line in bucket.prepare(
                client,
                bucket=config.bucket,
                prefix=config.prefix,
                retention=config.retention,
            ):
                click.echo(line)
        except BucketError as error:
            raise click.ClickException(str(error)) from error


def _dev_store() -> AbstractContextManager[None]:
    try:
        return devstore.running()
    except ImportError as error:
        raise click.ClickException(
            "--dev needs moto's S3: pip install 'message-history-server[dev]'."
        ) from error


async def _check_aws(config: settings.Settings) -> None:
    async with connect(config.region):
        pass


@contextmanager
def _mistakes_named() -> Iterator[None]:
    """End with exit code 2 and one message that names every mistake in the settings."""
    try:
        yield
    except SettingsError as error:
        for mistake in error.mistakes:
            click.echo(f"Error: {mistake}", err=True)
        click.echo(SETTINGS_HELP, err=True)
        raise SystemExit(2) from error
