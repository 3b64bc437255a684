"""The routes of the wire contract: headers in, headers out, and the bodies both ways as streams."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, closing
from email.utils import formatdate
from typing import Any, Literal, TypedDict, TypeVar, overload
from uuid import UUID

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from service import __version__, forms, metrics, pages, trace
from service.bundles import Bundles, Released
from service.claim import Claim
from service.errors import (
    ClientGone,
    MalformedHeader,
    MissingHeader,
    NotFound,
    StorageUnavailable,
    UploadTimeout,
)
from service.metrics import Metrics
from service.pace import Pace, Patience
from service.proof import Proof, digest_field, parse_digests, parse_hmac
from service.ranges import Wanted
from service.readiness import Readiness

_T = TypeVar("_T")


class State(TypedDict):
    """What the lifespan opens and every request finds in its `state`."""

    bundles: Bundles
    readiness: Readiness
    metrics: Metrics
    read_timeout: float
    contract: str


async def index(request: Request[State]) -> Response:
    """`GET /`: a line for load balancers and probes; for browsers a page without a script."""
    headers = {"Vary": "Accept", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if not pages.prefers_html(_lines(request, "Accept") or ""):
        return PlainTextResponse(f"message-history-server {__version__}\n", headers=headers)
    bundles = request.state["bundles"]
    page = pages.page(
        request.headers.get("Host", ""),
        https=request.headers.get("X-Forwarded-Proto") == "https",
        limit=bundles.limit,
        retention=bundles.retention,
        require_hmac=bundles.require_hmac,
    )
    headers["Content-Security-Policy"] = pages.CONTENT_SECURITY_POLICY
    headers["Referrer-Policy"] = "no-referrer"
    return HTMLResponse(page, headers=headers)


async def contract(request: Request[State]) -> Response:
    """`GET /openapi.json`."""
    return Response(request.state["contract"], media_type="application/json")


async def alive(_: Request[State]) -> Response:
    """`GET /healthz`: this process answers, whatever S3 does."""
    return PlainTextResponse("alive\n")


async def ready(request: Request[State]) -> Response:
    """`GET /readyz`: the bucket answers, and this process is not about to end; or 503."""
    await request.state["readiness"].check()
    return PlainTextResponse("ready\n")


async def measured(request: Request[State]) -> Response:
    """`GET /metrics`, for Prometheus."""
    exposition = request.state["metrics"].exposition()
    return Response(exposition, headers={"Content-Type": metrics.CONTENT_TYPE})


async def upload(request: Request[State]) -> Response:
    """`POST /upload`: the id alone, without a newline, as clients append it to a URL untrimmed."""
    bundles = request.state["bundles"]
    content_type = _header(request, "Content-Type") or b""
    form = forms.is_form(content_type)
    claim = _claim(request, form=form)
    life = _life(request, bundles.retention)
    length = _header(request, "Content-Length")
    async with aclosing(_body(request)) as body:
        bundle_id, record = await bundles.deposit(
            forms.file_part(body, content_type) if form else body,
            claim,
            life=life,
            length=None if length is None else int(length),
            envelope=forms.ENVELOPE if form else 0,
        )
    return PlainTextResponse(
        str(bundle_id),
        headers={
            "Location": f"/files/{bundle_id}",
            "Sunset": _http_date(record.expires_at),
        },
    )


async def file(request: Request[State]) -> Response:
    """`/files/{id}` is one route, so that a 405 names all its methods."""
    return await (discard if request.method == "DELETE" else fetch)(request)


async def fetch(request: Request[State]) -> Response:
    """`GET` and `HEAD /files/{id}`: everything is decided before there is a response."""
    bundles = request.state["bundles"]
    get = request.method == "GET"
    proof = _proof(request, required=bundles.require_hmac)
    wanted = Wanted(
        _lines(request, "Range") if get else None,
        _lines(request, "If-Match"),
        _lines(request, "If-Range"),
    )
    bundle_id = _bundle_id(request)
    withdrawal = bundles.withdraw(bundle_id, proof, wanted, body=get)
    released = await _unless_gone(request.receive, withdrawal)
    return BundleResponse(bundle_id, released)


async def discard(request: Request[State]) -> Response:
    """`DELETE /files/{id}`: with the proof always; done when the bundle is gone."""
    proof = _proof(request, required=True)
    wanted = Wanted(if_match=_lines(request, "If-Match"))
    await request.state["bundles"].discard(_bundle_id(request), proof, wanted)
    return Response(status_code=204)


class ExactRoute(Route):
    """Match nothing behind the path: Starlette's `$` also matches before a final newline."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].endswith("\n") else super().matches(scope)


ROUTES = [
    ExactRoute("/", index),
    ExactRoute("/healthz", alive),
    ExactRoute("/readyz", ready),
    ExactRoute("/metrics", measured),
    ExactRoute("/openapi.json", contract),
    ExactRoute("/upload", upload, methods=["POST"]),
    ExactRoute("/files/{bundle_id}", file, methods=["GET", "DELETE"]),
]


class BundleResponse(Response):
    """A released bundle, streamed; its content is closed at the end however that comes.

    Where the storage breaks off after the status line, the answer is left incomplete, so that the
    server cuts the connection: a short body that looks whole would be taken for the bundle.
    """

    media_type = "application/octet-stream"

    def __init__(self, bundle_id: UUID, released: Released) -> None:
        stat, part = released.stat, released.part
        self._content = released.content
        headers = {
            "Content-Length": str(stat.size if part is None else len(part)),
            "Accept-Ranges": "bytes",
            "ETag": stat.etag,
            "Last-Modified": _http_date(stat.modified_at),
            "Repr-Digest": digest_field(released.record.sha256),
            "Sunset": _http_date(released.record.expires_at),
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'attachment; filename="{bundle_id}"',
            "X-Content-Type-Options": "nosniff",
        }
        if part is not None:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{stat.size}"
        super().__init__(status_code=200 if part is None else 206, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._content is None:
            await super().__call__(scope, receive, send)
            return
        gone = asyncio.create_task(_client_gone(receive))
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for chunk in self._content:
                with trace.waiting("client"):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if gone.done():  # Sending is no error then, but goes nowhere.
                    return
        except StorageUnavailable:
            return
        finally:
            gone.cancel()
            await self._content.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, but drop it when the client hangs up, who would never see what comes of it."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_client_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait((task, gone))


async def _client_gone(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _http_date(unix_seconds: float) -> str:
    """An IMF-fixdate (RFC 9110, section 5.6.7)."""
    return formatdate(unix_seconds, usegmt=True)


def _header(request: Request[State], name: str) -> bytes | None:
    """The raw bytes of a header, or `None`; `MalformedHeader` where it was sent more than once."""
    values = [value for key, value in request.headers.raw if key == name.lower().encode()]
    if len(values) > 1:
        raise MalformedHeader(f"Send the header {name} once.")
    return values[0].strip(b" \t") if values else None


def _lines(request: Request[State], name: str) -> str | None:
    """A header that may come in several lines, which are one list (RFC 9110, section 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _claim(request: Request[State], *, form: bool) -> Claim:
    """What an upload's headers say of it."""
    hmac, key = _header(request, "X-HMAC"), _header(request, "X-SIGNING-KEY")
    if hmac == b"" or (hmac is None and key is not None):
        raise MissingHeader("X-HMAC")
    if key == b"":
        raise MissingHeader("X-SIGNING-KEY")
    digests = []
    for name in ("Content-Digest", "Repr-Digest"):
        if (lines := _lines(request, name)) is not None:
            if form:
                raise MalformedHeader(f"Send {name} with the bare bundle: it would cover the form.")
            digests.append(parse_digests(name, lines.encode("latin-1")))
    return Claim(
        None if hmac is None else parse_hmac(hmac), key, [digest for digest in digests if digest]
    )


def _life(request: Request[State], retention: int) -> int | None:
    """The seconds of `X-TTL`."""
    value = _header(request, "X-TTL")
    if value is None:
        return None
    if not re.fullmatch(rb"[0-9]{1,12}", value) or not 1 <= int(value) <= retention:
        raise MalformedHeader(f"X-TTL must be whole seconds, from 1 to {retention}.")
    return int(value)


@overload
def _proof(request: Request[State], *, required: Literal[True]) -> Proof: ...
@overload
def _proof(request: Request[State], *, required: bool) -> Proof | None: ...
def _proof(request: Request[State], *, required: bool) -> Proof | None:
    """Both proof headers, or neither where that is enough to go on with."""
    hmac, key = _header(request, "X-HMAC"), _header(request, "X-SIGNING-KEY")
    if hmac is None and key is None and not required:
        return None
    if not hmac:
        raise MissingHeader("X-HMAC")
    if not key:
        raise MissingHeader("X-SIGNING-KEY")
    return Proof(parse_hmac(hmac), key)


def _bundle_id(request: Request[State]) -> UUID:
    """The id in the path, in any spelling that `uuid.UUID` takes."""
    try:
        return UUID(request.path_params["bundle_id"])
    except ValueError as error:
        raise NotFound from error


async def _body(request: Request[State]) -> AsyncGenerator[bytes, None]:
    """The request's body as it arrives; `UploadTimeout` where the client is too slow with it."""
    pace, more = Pace(request.state["read_timeout"]), True
    with closing(Patience(pace)) as patience:
        while more:
            began = time.monotonic()
            try:
                with trace.waiting("client"), patience:
                    message = await request.receive()
            except TimeoutError as error:
                raise UploadTimeout from error
            if message["type"] == "http.disconnect":
                raise ClientGone
            more, chunk = message.get("more_body", False), message.get("body", b"")
            pace.waited(time.monotonic() - began, len(chunk))
            if chunk:
                yield chunk
