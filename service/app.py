"""The application, wired: settings in, an ASGI application out. Tests start the same one."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.types import ASGIApp

from service import pages
from service.api import ROUTES, State
from service.budget import SLOT, Memory
from service.bundles import OPEN_BODY, Bundles
from service.client import Calls, connect
from service.errors import StorageUnavailable
from service.metrics import Metrics
from service.middleware import wrap
from service.problems import HANDLERS
from service.readiness import Drain, Readiness
from service.settings import Settings
from service.storage import S3Storage


def create_app(
    settings: Settings, *, drain: Drain | None = None, clock: Callable[[], float] = time.time
) -> ASGIApp:
    """Build the service; its lifespan opens and closes the one S3 client.

    `drain` is what the server says of its end, `clock` gives Unix seconds.
    """
    drain = drain or Drain()
    metrics = Metrics()
    contract = pages.contract(retention=settings.retention, require_hmac=settings.require_hmac)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[State]:
        memory = Memory(settings.memory_budget, timeout=settings.queue_timeout)
        metrics.watch("parts", memory.parts)
        metrics.watch("slots", memory.slots)
        transfers = memory.parts.total // OPEN_BODY + memory.slots.total // SLOT
        async with connect(settings.region, connections=2 * transfers, metrics=metrics) as client:
            storage = S3Storage(
                client,
                Calls(settings.bucket, metrics),
                bucket=settings.bucket,
                prefix=settings.prefix,
            )
            bundles = Bundles(
                storage,
                memory,
                metrics,
                drain,
                part_size=settings.part_size,
                limit=settings.max_bundle_size,
                retention=settings.retention,
                require_hmac=settings.require_hmac,
                clock=clock,
            )
            readiness = Readiness(storage.probe, drain)
            with suppress(StorageUnavailable):  # The log says what is wrong; it may come right.
                await readiness.check()
            try:
                yield State(
                    bundles=bundles,
                    readiness=readiness,
                    metrics=metrics,
                    read_timeout=settings.read_timeout,
                    contract=contract,
                )
            finally:
                await bundles.close()

    app = Starlette(routes=ROUTES, exception_handlers=HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False
    return wrap(app, metrics, drain, cors_origins=settings.cors_origins)
