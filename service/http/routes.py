"""The routes of the API: each function turns a request into a call and its result into a response.

`upload`, `download` and `delete` parse headers and call `bundles.service`. `service.app` registers
`ROUTES`, and its lifespan creates the objects in `State`.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal, TypedDict, overload
from uuid import UUID

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from service import __version__
from service.bundles.limits import Caller
from service.bundles.memory import Memory
from service.bundles.proof import Proof, UploadClaims, parse_digests, parse_hmac
from service.bundles.ranges import RangeRequest
from service.bundles.service import BundleService
from service.errors import ClientGone, MalformedHeader, MissingHeader, NotFound, UploadTimeout
from service.http import about, forms
from service.http.access_log import CALLER
from service.http.auth.authorizer import Authorizer
from service.http.health import Readiness
from service.http.responses import (
    BundleResponse,
    cancel_on_disconnect,
    has_disconnected,
    http_date,
)
from service.http.slow_clients import ClientRate
from service.telemetry import metrics, timing
from service.telemetry.metrics import Metrics


class State(TypedDict):
    """The objects that the lifespan creates; each request has them in `request.state`."""

    bundles: BundleService
    authorizer: Authorizer
    memory: Memory
    readiness: Readiness
    metrics: Metrics
    read_timeout: float
    openapi: str


async def index(request: Request[State]) -> Response:
    """`GET /`: one line of text for load balancers and probes, a page for browsers."""
    headers = {"Vary": "Accept", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if not about.prefers_html(_list_header(request, "Accept") or ""):
        return PlainTextResponse(f"message-history-server {__version__}\n", headers=headers)
    bundles = request.state["bundles"]
    page = about.page(
        request.headers.get("Host", ""),
        https=request.headers.get("X-Forwarded-Proto") == "https",
        max_size=bundles.max_size,
        retention=bundles.retention,
        require_hmac=bundles.require_hmac,
    )
    headers["Content-Security-Policy"] = about.CONTENT_SECURITY_POLICY
    headers["Referrer-Policy"] = "no-referrer"
    return HTMLResponse(page, headers=headers)


async def openapi(request: Request[State]) -> Response:
    """`GET /openapi.json`."""
    return Response(request.state["openapi"], media_type="application/json")


async def healthz(_: Request[State]) -> Response:
    """`GET /healthz`: 200 while this process responds, whether or not S3 does."""
    return PlainTextResponse("alive\n")


async def readyz(request: Request[State]) -> Response:
    """`GET /readyz`: 200 while the bucket responds and the process does not drain, or else 503."""
    await request.state["readiness"].check()
    return PlainTextResponse("ready\n")


async def prometheus(request: Request[State]) -> Response:
    """`GET /metrics`, for Prometheus."""
    exposition = request.state["metrics"].exposition()
    return Response(exposition, headers={"Content-Type": metrics.CONTENT_TYPE})


async def upload(request: Request[State]) -> Response:
    """`POST /upload`: answers with the bundle's id.

    The body has no newline after the id, because clients append it to a URL as it is. If the client
    has disconnected before it could get the id, the bundle is removed again.
    """
    bundles = request.state["bundles"]
    started = bundles.now()
    content_type = _header(request, "Content-Type") or b""
    form = forms.is_form(content_type)
    claims = _claims(request, form=form)
    ttl = _ttl(request, bundles.retention)
    length = _header(request, "Content-Length")
    caller = await request.state["authorizer"].authorize(request.scope)
    request.scope[CALLER] = _short_name(caller)
    async with aclosing(_body(request)) as body:
        bundle_id, record = await bundles.upload(
            forms.file_part(body, content_type) if form else body,
            claims,
            started=started,
            ttl=ttl,
            length=None if length is None else int(length),
            form_overhead=forms.MAX_OVERHEAD if form else 0,
            caller=caller,
        )
    if await has_disconnected(request.receive):
        bundles.discard(bundle_id)
        raise ClientGone
    request.state["metrics"].uploads.labels(caller.name).inc()
    return PlainTextResponse(
        str(bundle_id),
        headers={
            "Location": f"/files/{bundle_id}",
            "Sunset": http_date(record.expires_at),
        },
    )


async def file(request: Request[State]) -> Response:
    """`/files/{id}`: one route for all methods, so that `Allow` of a 405 lists all of them."""
    return await (delete if request.method == "DELETE" else download)(request)


async def download(request: Request[State]) -> Response:
    """`GET` and `HEAD /files/{id}`: the download is authorized before the response starts."""
    bundles = request.state["bundles"]
    get = request.method == "GET"
    proof = _proof(request, required=bundles.require_hmac)
    requested = RangeRequest(
        _list_header(request, "Range") if get else None,
        _list_header(request, "If-Match"),
        _list_header(request, "If-Range"),
    )
    bundle_id = _bundle_id(request)
    work = bundles.download(bundle_id, proof, requested, body=get)
    authorized = await cancel_on_disconnect(request.receive, work)
    try:
        return BundleResponse(bundle_id, authorized)
    except BaseException:  # The response would have closed the content.
        if authorized.content is not None:
            await authorized.content.aclose()
        raise


async def delete(request: Request[State]) -> Response:
    """`DELETE /files/{id}`: always needs a proof; answers when the bundle is deleted."""
    proof = _proof(request, required=True)
    requested = RangeRequest(if_match=_list_header(request, "If-Match"))
    await request.state["bundles"].delete(_bundle_id(request), proof, requested)
    return Response(status_code=204)


class ExactRoute(Route):
    """Matches the exact path. Starlette's `$` also matches before a newline at the end."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].endswith("\n") else super().matches(scope)


ROUTES = [
    ExactRoute("/", index),
    ExactRoute("/healthz", healthz),
    ExactRoute("/readyz", readyz),
    ExactRoute("/metrics", prometheus),
    ExactRoute("/openapi.json", openapi),
    ExactRoute("/upload", upload, methods=["POST"]),
    ExactRoute("/files/{bundle_id}", file, methods=["GET", "DELETE"]),
]


def _header(request: Request[State], name: str) -> bytes | None:
    """Return a header's raw bytes, or `None`. Raises `MalformedHeader` if it was sent twice."""
    values = [value for key, value in request.headers.raw if key == name.lower().encode()]
    if len(values) > 1:
        raise MalformedHeader(f"The {name} header was sent more than once: send it once.")
    return values[0].strip(b" \t") if values else None


def _list_header(request: Request[State], name: str) -> str | None:
    """Return a header that may have several lines, joined to one list (RFC 9110, section 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _claims(request: Request[State], *, form: bool) -> UploadClaims:
    """Parse what an upload's headers claim about its bundle."""
    hmac, key = _header(request, "X-HMAC"), _header(request, "X-SIGNING-KEY")
    if hmac == b"" or (hmac is None and key is not None):
        raise MissingHeader("X-HMAC")
    if key == b"":
        raise MissingHeader("X-SIGNING-KEY")
    digests = []
    for name in ("Content-Digest", "Repr-Digest"):
        if (value := _list_header(request, name)) is not None:
            if form:
                raise MalformedHeader(
                    f"The {name} header would cover the whole form, not the bundle: leave it out, "
                    "or send the bundle itself as the body."
                )
            digests.append(parse_digests(name, value.encode("latin-1")))
    return UploadClaims(
        None if hmac is None else parse_hmac(hmac), key, [digest for digest in digests if digest]
    )


def _short_name(caller: Caller) -> str | None:
    """Return who uploads, for the log: of a JWT, the first characters of its subject."""
    subject = caller.subject.encode("unicode_escape").decode()
    return f"{caller.name}:{subject[:8]}…" if subject else caller.name or None


def _ttl(request: Request[State], retention: int) -> int | None:
    """Parse `X-TTL` in seconds."""
    value = _header(request, "X-TTL")
    if value is None:
        return None
    if not re.fullmatch(rb"[0-9]{1,12}", value) or not 1 <= int(value) <= retention:
        raise MalformedHeader(
            f"The X-TTL header is not valid: send a whole number of seconds from 1 to {retention}."
        )
    return int(value)


@overload
def _proof(request: Request[State], *, required: Literal[True]) -> Proof: ...
@overload
def _proof(request: Request[State], *, required: bool) -> Proof | None: ...
def _proof(request: Request[State], *, required: bool) -> Proof | None:
    """Parse both proof headers; return `None` if neither was sent and none is `required`."""
    hmac, key = _header(request, "X-HMAC"), _header(request, "X-SIGNING-KEY")
    if hmac is None and key is None and not required:
        return None
    if not hmac:
        raise MissingHeader("X-HMAC")
    if not key:
        raise MissingHeader("X-SIGNING-KEY")
    return Proof(parse_hmac(hmac), key)


def _bundle_id(request: Request[State]) -> UUID:
    """Parse the id in the path, in any spelling that `uuid.UUID` accepts."""
    try:
        return UUID(request.path_params["bundle_id"])
    except ValueError as error:
        raise NotFound from error


async def _body(request: Request[State]) -> AsyncGenerator[bytes, None]:
    """Yield the request's body as it arrives. Raises `UploadTimeout` if the client is too slow."""
    rate, memory, more = ClientRate(request.state["read_timeout"]), request.state["memory"], True
    while more:
        started = time.monotonic()
        try:
            with timing.measure("client"):
                if delay := rate.read_delay:
                    slow = rate.reads_little
                    memory.slow_transfers += slow
                    try:
                        await asyncio.sleep(delay)
                    finally:
                        memory.slow_transfers -= slow
                async with asyncio.timeout(rate.time_left - delay):
                    message = await request.receive()
        except TimeoutError as error:
            raise UploadTimeout from error
        if message["type"] == "http.disconnect":
            raise ClientGone
        more, chunk = message.get("more_body", False), message.get("body", b"")
        rate.record(time.monotonic() - started, len(chunk), memory.chunk_size())
        if chunk:
            yield chunk
