"""The S3 client of the process: its connections and its configuration.

`service.app` opens the one client of the running service. `service.cli` opens one for each of its
other tasks: checking AWS's settings, `init-bucket` and `check`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ReadTimeoutError
from botocore.handlers import add_expect_header
from botocore.loaders import Loader

from service import __version__
from service.errors import SettingsError
from service.s3 import calls
from service.s3.reads import ReadMemory, limit_read_ahead
from service.s3.retries import configure_retries
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from types import TracebackType

    from types_aiobotocore_s3 import S3Client

READ_TIMEOUT = 10.0
"""Seconds. A request fails if S3 neither sends nor accepts a byte for this long."""

CLIENT_CONFIG: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": READ_TIMEOUT,
    "retries": {"mode": "standard"},
    # Ceph answers 400 to checksum trailers.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "parameter_validation": False,
    # TLS protects the body, as it does for downloads. Hashing each part takes 10 % of the CPU time.
    "s3": {"payload_signing_enabled": False},
}
"""botocore's configuration."""

_ENDPOINT_RULE = (
    "AWS_ENDPOINT_URL_S3 should be a URL such as https://s3.example:9000, without a user name and "
    "a password (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are for credentials)"
)


@asynccontextmanager
async def connect(
    region: str | None = None,
    *,
    connections: int = 10,
    memory: ReadMemory | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[S3Client]:
    """Open the S3 client of the process.

    Except for `region` and the User-Agent, botocore's own settings apply.

    The pool holds up to `connections`. It has to be large enough that no transfer waits for a
    connection; a transfer uses up to two. `memory` limits how much each reads at once. Raises
    `SettingsError` if botocore's settings are wrong.
    """
    config = AioConfig(
        **CLIENT_CONFIG,
        http_session_cls=partial(_Session, memory=memory),  # type: ignore[arg-type]
        max_pool_connections=connections,
        # botocore's own is built twice for each request, character by character. That takes a
        # tenth of the CPU time of a small transfer.
        user_agent=f"message-history-server/{__version__}",
    )
    async with AsyncExitStack() as stack:
        try:
            models = AioSession()
            models.register_component("data_loader", _Loader())
            session = aioboto3.Session(region_name=region, botocore_session=models)
            client = await stack.enter_async_context(session.client("s3", config=config))
        except (BotoCoreError, ValueError) as error:
            # The text of this error has the whole URL, which may hold a password.
            invalid_url = str(error).startswith("Invalid endpoint: ")
            mistake = _ENDPOINT_RULE if invalid_url else error
            raise SettingsError([f"AWS's settings: {mistake}"]) from error
        if not _is_usable(client.meta.endpoint_url):
            raise SettingsError([f"AWS's settings: {_ENDPOINT_RULE}"])
        # Expect: 100-continue costs a round trip for each body, and some stores do not answer it.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        configure_retries(client, metrics)
        yield client


def _is_usable(endpoint_url: str) -> bool:
    """Return whether an endpoint is an http or https URL with a valid port and no password."""
    endpoint = urlsplit(endpoint_url)
    try:
        port_is_valid = endpoint.port != 0
    except ValueError:
        return False
    return port_is_valid and endpoint.scheme in {"http", "https"} and "@" not in endpoint.netloc


class _Loader(Loader):
    """Loads botocore's models without the object key among the parameters of the endpoint rules.

    No rule uses the key. With it, the cache of resolved endpoints never matches, because every
    bundle has a new key. That would take a sixth more CPU time for a small upload.
    """

    def load_service_model(
        self, service_name: str, type_name: str, api_version: str | None = None
    ) -> Any:
        model = super().load_service_model(service_name, type_name, api_version)
        if type_name != "endpoint-rule-set-1":
            return model
        used = {name: value for name, value in model["parameters"].items() if name != "Key"}
        return {**model, "parameters": used}


class _Session(AIOHTTPSession):
    """Limits what is read ahead, and adds a timeout for sending a request body.

    A request that times out is retried.

    aiohttp's read timeout starts only after the body has been sent. After a timeout, aiohttp closes
    the connection, but closing waits until all data is sent: so the kernel has a timeout too.
    """

    def __init__(
        self,
        *,
        memory: ReadMemory | None,
        connector_args: Mapping[str, Any],
        **arguments: Any,
    ) -> None:
        self._memory = memory
        connector_args = {**connector_args, "socket_factory": _socket}
        super().__init__(connector_args=connector_args, **arguments)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Drop all connections. Closing them would wait until S3 has read what was sent."""
        for session in self._sessions.values():  # type: ignore[attr-defined]
            for connection in session.connector._acquired:  # noqa: SLF001
                connection.abort()
        await super().__aexit__(exc_type, exc_val, exc_tb)

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        is_new = proxy_url not in self._sessions  # type: ignore[attr-defined]
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)  # type: ignore[misc]
        if is_new and self._memory is not None:
            limit_read_ahead(session, self._memory)
        return session

    async def send(self, request: Any) -> Any:
        body = request.body
        if not isinstance(body, AsyncIterable):
            return await super().send(request)
        try:
            async with asyncio.timeout(READ_TIMEOUT) as deadline:
                request.body = _extend_timeout(body, deadline)
                return await super().send(request)
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=request.url) from error
        finally:
            request.body = body


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    connection = socket.socket(*address[:3])
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(calls.CALL_TIMEOUT * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return connection


async def _extend_timeout(
    body: AsyncIterable[Any], deadline: asyncio.Timeout
) -> AsyncIterator[Any]:
    """Yield a body, with `READ_TIMEOUT` for S3 to take each of its chunks.

    There is no timeout while the next chunk has yet to arrive from the client, nor after the last
    one: other timeouts apply then.
    """
    loop = asyncio.get_running_loop()
    chunks = aiter(body)
    while True:
        with suppress(RuntimeError):  # S3 has already responded.
            deadline.reschedule(None)
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        with suppress(RuntimeError):
            deadline.reschedule(loop.time() + READ_TIMEOUT)
        yield chunk
