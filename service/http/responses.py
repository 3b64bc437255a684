"""A bundle as a streamed response, and what happens if the client disconnects meanwhile.

`routes` returns a `BundleResponse` for every download.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from email.utils import formatdate
from typing import Any, TypeVar
from uuid import UUID

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.bundles.access import Download
from service.bundles.proof import format_digest
from service.errors import ClientGone, StorageUnavailable
from service.telemetry import timing

_T = TypeVar("_T")


class BundleResponse(Response):
    """Streams an authorized download. Its content is closed at the end, whatever happens.

    If S3 fails after the status line was sent, the response is left incomplete, so that the server
    closes the connection. A client would take a short body with a clean end for the whole bundle.
    """

    media_type = "application/octet-stream"

    def __init__(self, bundle_id: UUID, download: Download) -> None:
        stat, part = download.stat, download.part
        self._content = download.content
        headers = {
            "Content-Length": str(stat.size if part is None else len(part)),
            "Accept-Ranges": "bytes",
            "ETag": stat.etag,
            "Last-Modified": http_date(stat.modified_at),
            "Sunset": http_date(download.record.expires_at),
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'attachment; filename="{bundle_id}"',
            "X-Content-Type-Options": "nosniff",
        }
        if download.record.sha256 is not None:
            headers["Repr-Digest"] = format_digest(download.record.sha256)
        if part is not None:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{stat.size}"
        super().__init__(status_code=200 if part is None else 206, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._content is None:
            await super().__call__(scope, receive, send)
            return
        disconnected = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for chunk in self._content:
                with timing.measure("client"):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if disconnected.done():  # Sending would drop the bytes without an error.
                    return
        except StorageUnavailable:
            return
        finally:
            disconnected.cancel()
            await self._content.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, but cancel it and raise `ClientGone` if the client disconnects."""
    task = asyncio.create_task(work)
    disconnected = asyncio.create_task(wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        disconnected.cancel()
        await asyncio.wait((task, disconnected))


async def has_disconnected(receive: Receive) -> bool:
    """Return whether the server knows that the client has gone. The request's body has ended."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await wait_for_disconnect(receive)
        return True
    return False


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def http_date(unix_seconds: float) -> str:
    """Format an IMF-fixdate (RFC 9110, section 5.6.7)."""
    return formatdate(unix_seconds, usegmt=True)
