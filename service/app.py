"""Builds the ASGI application from the settings.

`service.cli` serves it, and tests start the same application. All objects are created here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.types import ASGIApp

from service.bundles.limits import UploadLimits
from service.bundles.memory import Memory
from service.bundles.service import BundleService
from service.drain import Drain
from service.errors import StorageUnavailable
from service.http import about
from service.http.auth.authorizer import Authorizer, UploadToken
from service.http.auth.jwks import KeyCache
from service.http.auth.jwts import JwtVerifier
from service.http.health import Readiness
from service.http.middleware import wrap
from service.http.problems import EXCEPTION_HANDLERS
from service.http.routes import ROUTES, State
from service.http.server import open_files
from service.s3.calls import S3Calls
from service.s3.client import connect
from service.s3.storage import S3Storage
from service.settings import Settings, aws_region
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer


@asynccontextmanager
async def open_authorizer(settings: Settings) -> AsyncIterator[Authorizer]:
    """Create what decides who may upload. With JWTs, fetch their keys in the background."""
    tokens = [UploadToken(*token) for token in settings.upload_tokens]
    if not (settings.jwt_jwks_url and settings.jwt_issuer and settings.jwt_audience):
        yield Authorizer(tokens, None)
        return
    keys = KeyCache(settings.jwt_jwks_url)
    keys.refresh()
    try:
        yield Authorizer(
            tokens, JwtVerifier(keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience)
        )
    finally:
        await keys.close()


def create_app(
    settings: Settings,
    *,
    drain: Drain | None = None,
    tracer: Tracer | None = None,
    clock: Callable[[], float] = time.time,
) -> ASGIApp:
    """Build the application. Its lifespan opens and closes the one S3 client.

    The server sets `drain` during shutdown. With a `tracer`, requests have spans, and the end of
    the lifespan closes it. `clock` returns Unix seconds.
    """
    drain = drain or Drain()
    metrics = Metrics()
    openapi = about.openapi_document(
        retention=settings.retention, require_hmac=settings.require_hmac
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[State]:
        memory = Memory(
            settings.memory_budget, part_size=settings.part_size, timeout=settings.queue_timeout
        )
        metrics.watch("windows", memory.windows)
        metrics.watch("buffers", memory.buffers, reclaimable=memory.replay_size)
        metrics.memory_limit.set(settings.memory_budget)
        metrics.memory_replay.set_function(memory.replay_size)
        open_files.raise_limit(memory.max_transfers)
        connections = 2 * memory.max_transfers
        async with (
            open_authorizer(settings) as authorizer,
            connect(
                aws_region(),
                connections=connections,
                memory=memory,
                metrics=metrics,
            ) as client,
        ):
            storage = S3Storage(
                client,
                S3Calls(settings.bucket, metrics),
                bucket=settings.bucket,
                prefix=settings.prefix,
                records=settings.records,
            )
            bundles = BundleService(
                storage,
                memory,
                UploadLimits(
                    settings.upload_limits.get("transfers"),
                    settings.upload_limits.get("bytes-per-hour"),
                ),
                metrics,
                drain,
                max_size=settings.max_bundle_size,
                retention=settings.retention,
                require_hmac=settings.require_hmac,
                clock=clock,
            )
            readiness = Readiness(storage.probe, drain)
            with suppress(StorageUnavailable):  # The problem is logged, and may be temporary.
                await readiness.check()
            yield State(
                bundles=bundles,
                authorizer=authorizer,
                memory=memory,
                readiness=readiness,
                metrics=metrics,
                read_timeout=settings.read_timeout,
                openapi=openapi,
            )
            # Not if the lifespan is cancelled: a second signal ends the process at once.
            await asyncio.gather(bundles.close(), storage.close())
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

    app = Starlette(routes=ROUTES, exception_handlers=EXCEPTION_HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False
    return wrap(app, metrics, tracer, drain, cors_origins=settings.cors_origins)
