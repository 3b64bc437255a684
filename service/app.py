"""The application, wired: settings in, an ASGI application out. Tests start the same one."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.types import ASGIApp

from service import pages
from service.api import ROUTES, State
from service.budget import SLOT, Memory
from service.bundles import OPEN_BODY, Bundles
from service.middleware import wrap
from service.problems import HANDLERS
from service.settings import Settings
from service.storage import S3Storage, connect


def create_app(settings: Settings, *, clock: Callable[[], float] = time.time) -> ASGIApp:
    """Build the service; its lifespan opens and closes the one S3 client. `clock`: Unix seconds."""
    contract = pages.contract(retention=settings.retention, require_hmac=settings.require_hmac)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[State]:
        memory = Memory(settings.memory_budget, timeout=settings.queue_timeout)
        transfers = memory.parts.total // OPEN_BODY + memory.slots.total // SLOT
        async with connect(settings.region, connections=2 * transfers) as client:
            bundles = Bundles(
                S3Storage(client, bucket=settings.bucket, prefix=settings.prefix),
                memory,
                part_size=settings.part_size,
                limit=settings.max_bundle_size,
                retention=settings.retention,
                require_hmac=settings.require_hmac,
                clock=clock,
            )
            try:
                yield State(bundles=bundles, read_timeout=settings.read_timeout, contract=contract)
            finally:
                await bundles.close()

    app = Starlette(routes=ROUTES, exception_handlers=HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False
    return wrap(app, cors_origins=settings.cors_origins)
