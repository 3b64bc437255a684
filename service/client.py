"""The S3 client of a process, and its calls: bounded, retried, counted, their errors translated.

Here alone botocore's and aiohttp's errors turn into this service's own.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.retries.standard import (
    AioRetryHandler,
    AioRetryPolicy,
    AioStandardRetryConditions,
)
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.handlers import add_expect_header
from botocore.loaders import Loader
from botocore.retries.quota import RetryQuota
from botocore.retries.standard import ExponentialBackoff, RetryEventAdapter, RetryQuotaChecker

from service import trace
from service.errors import NotFound, SettingsError, StorageUnavailable
from service.metrics import Metrics

if TYPE_CHECKING:
    from aiobotocore.response import StreamingBody
    from types_aiobotocore_s3 import S3Client

_log = logging.getLogger(__name__)

ATTEMPTS = 8
"""How often a request is sent at most: a store that refuses every fifth goes unnoticed."""

BACKOFF = 1
"""Seconds between two attempts at most; before the second one, half as long on average."""

READ_TIMEOUT = 10.0
"""Seconds for which S3 may send nothing, or take nothing, before a request counts as failed."""

CALL_TIMEOUT = 30.0
"""Seconds that a call may take with all its attempts, beside what its body takes."""

SLOWEST = 128 * 1024
"""Bytes a second at which a part is still sent; a store that takes it slower has failed."""

SAID_AGAIN = 60.0
"""Seconds after which a cause that lasts is logged again."""

SETTINGS: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": READ_TIMEOUT,
    "retries": {"mode": "standard"},
    # Ceph answers 400 to checksum trailers.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "parameter_validation": False,
    # TLS sees to that, as it does for the way back. To hash each part takes a tenth of the CPU.
    "s3": {"payload_signing_enabled": False},
}
"""What botocore is told."""

_FAILURES = (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError)
"""What botocore and aiohttp raise where S3 gave no answer, or no whole one."""

NETWORK_ERRORS = (NoConnection, HTTPClientError, IncompleteReadError)
"""What of botocore's is no mistake in its settings or credentials."""

_ABSENT = {"NoSuchKey", "PreconditionFailed", "412"}
"""What S3 says where there is no such object, or none with the ETag of If-Match."""

_ABSENT_AT_HEAD = {"404"}
"""An answer to HEAD has no body that could say more. Elsewhere, a bare 404 is not S3's."""

_UNREACHABLE = "S3 cannot be reached"
_AT_HEAD = {"403": "AccessDenied", "404": "NoSuchBucket"}
_REMEDIES = {
    "NoSuchBucket": "make the bucket {bucket} with init-bucket, or set HISTORY_BUCKET to another",
    "RequestTimeTooSkewed": "set this machine's clock",
    _UNREACHABLE: "check AWS_ENDPOINT_URL_S3 and the network",
}
_REFUSED = "check the credentials and what they permit on the bucket {bucket}"


@asynccontextmanager
async def connect(
    region: str | None = None, *, connections: int = 10, metrics: Metrics | None = None
) -> AsyncIterator[S3Client]:
    """Open the S3 client of a process; all but `region` is botocore's own configuration.

    `connections` are pooled at most. The pool must never be a queue: a transfer may hold two.
    Raises `SettingsError` where botocore's configuration is none.
    """
    config = AioConfig(**SETTINGS, http_session_cls=_Session, max_pool_connections=connections)
    async with AsyncExitStack() as stack:
        try:
            models = AioSession()
            models.register_component("data_loader", _Loader())
            session = aioboto3.Session(region_name=region, botocore_session=models)
            client = await stack.enter_async_context(session.client("s3", config=config))
        except (BotoCoreError, ValueError) as error:
            raise SettingsError([f"AWS's settings: {error}"]) from error
        # A round trip before every body, which not every store answers.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        # What it is called it would say anew twice for every request: a twelfth of an upload's CPU.
        agent = client._user_agent_creator  # noqa: SLF001
        agent.to_string = partial(str, agent.to_string())
        _retry_often(client, metrics)
        yield client


class _Loader(Loader):
    """botocore's models of S3, whose endpoints do not depend on an object's key.

    No rule asks for it; but with a new one for each bundle none was found resolved already, which
    took 0.6 ms of every call.
    """

    def load_service_model(
        self, service_name: str, type_name: str, api_version: str | None = None
    ) -> Any:
        model = super().load_service_model(service_name, type_name, api_version)
        if type_name != "endpoint-rule-set-1":
            return model
        used = {name: it for name, it in model["parameters"].items() if name != "Key"}
        return {**model, "parameters": used}


class _Session(AIOHTTPSession):
    """Requests whose bodies S3 stops taking fail, and are sent again.

    aiohttp reckons its read time-out only from the end of the body. It then closes the connection,
    but a close waits for what is still to be sent: so the kernel has a time-out, too.
    """

    def __init__(self, *, connector_args: Mapping[str, Any], **arguments: Any) -> None:
        connector_args = {**connector_args, "socket_factory": _socket}
        super().__init__(connector_args=connector_args, **arguments)

    async def send(self, request: Any) -> Any:
        body = request.body
        if not isinstance(body, AsyncIterable):
            return await super().send(request)
        try:
            async with asyncio.timeout(READ_TIMEOUT) as stalled:
                request.body = _watched(body, stalled)
                return await super().send(request)
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=request.url) from error
        finally:
            request.body = body


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(CALL_TIMEOUT * 1000)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return made


async def _watched(body: AsyncIterable[Any], stalled: asyncio.Timeout) -> AsyncIterator[Any]:
    """A body that has `READ_TIMEOUT` for each of its pieces."""
    loop = asyncio.get_running_loop()
    async for piece in body:
        with suppress(RuntimeError):  # S3 has answered already.
            stalled.reschedule(loop.time() + READ_TIMEOUT)
        yield piece
    with suppress(RuntimeError):
        stalled.reschedule(None)


def _retry_often(client: S3Client, metrics: Metrics | None) -> None:
    """Put botocore's standard retries in the place of its own, with more and shorter waits.

    Its quota stays: where S3 fails at everything, most requests fail at once.
    """
    quota = RetryQuotaChecker(RetryQuota())
    handler = AioRetryHandler(
        AioRetryPolicy(
            AioStandardRetryConditions(max_attempts=ATTEMPTS),
            ExponentialBackoff(max_backoff=BACKOFF),
        ),
        RetryEventAdapter(),
        quota,  # type: ignore[arg-type]
    )

    async def needs_retry(**request: Any) -> float | None:
        delay: float | None = await handler.needs_retry(**request)
        if delay is not None and metrics is not None:
            metrics.s3_retries.labels(request["operation"].name).inc()
        return delay

    events = client.meta.events
    events.unregister("needs-retry.s3", unique_id="retry-config-s3")
    events.register("needs-retry.s3", needs_retry)  # type: ignore[arg-type]
    events.register("after-call.s3", quota.release_retry_quota)


class BrokenOff(Exception):
    """A body from S3 ended before its time; what was read before is good."""


class Calls:
    """Every call to S3 goes through here; `bucket` is named where something is wrong with it."""

    def __init__(self, bucket: str, metrics: Metrics) -> None:
        self.metrics = metrics
        self._bucket = bucket
        self._said: dict[str, float] = {}

    @asynccontextmanager
    async def call(
        self,
        operation: str,
        *,
        limit: float | None = None,
        size: int = 0,
        may_be_absent: bool = False,
    ) -> AsyncIterator[None]:
        """Bound, count and translate one call, to `limit` seconds and the time for `size` bytes.

        An absent object is `NotFound` only to those who look for one; everything else that is wrong
        is `StorageUnavailable`.
        """
        began, outcome = time.monotonic(), "failed"
        try:
            with trace.waiting("s3"):
                async with asyncio.timeout((limit or CALL_TIMEOUT) + size / SLOWEST):
                    yield
            outcome = "ok"
        except ClientError as error:
            absent = _ABSENT_AT_HEAD if operation == "HeadObject" else _ABSENT
            if may_be_absent and error_code(error) in absent:
                outcome = "absent"
                raise NotFound from error
            if error_status(error) < HTTPStatus.INTERNAL_SERVER_ERROR:
                outcome = "refused"
            self.failed(operation, error)
            raise StorageUnavailable from error
        except _FAILURES as error:
            self.failed(operation, error)
            raise StorageUnavailable from error
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            seconds = time.monotonic() - began
            self.metrics.s3.labels(operation, outcome).observe(seconds)

    async def read(self, body: StreamingBody) -> bytes:
        """What has come of a body that has some left. Raises `BrokenOff`.

        aiohttp's own stream is asked: aiobotocore's cuts every chunk to size, and so copies it.
        """
        try:
            with trace.waiting("s3"):
                chunk: bytes = (await body.content.readchunk())[0]
                # What came may be the mere end of a chunk of HTTP's.
                while not chunk and not body.content.at_eof():
                    chunk = (await body.content.readchunk())[0]
        except _FAILURES as error:
            raise BrokenOff from error
        if not chunk:
            raise BrokenOff
        return chunk

    def failed(self, operation: str, error: BaseException) -> None:
        """Log what is wrong with S3 once, not with every call that finds it so.

        Of an error only its kind is said: its text may hold the URL, and that a bundle's id.
        """
        if isinstance(error, ClientError):
            cause = _AT_HEAD.get(error_code(error), error_code(error))
            words = f"S3 refuses {operation}: {cause}"
        elif isinstance(error, BotoCoreError) and not isinstance(error, NETWORK_ERRORS):
            cause = type(error).__name__
            words = f"S3 cannot be asked for {operation}: {cause}"
        else:
            cause = _UNREACHABLE
            words = f"{_UNREACHABLE} for {operation}: {type(error).__name__}"
        now = time.monotonic()
        if now >= self._said.get(cause, 0.0):
            self._said[cause] = now + SAID_AGAIN
            remedy = _REMEDIES.get(cause, _REFUSED).format(bucket=self._bucket)
            _log.warning("%s; %s", words, remedy)


def error_code(error: ClientError) -> str:
    """S3's word for what is wrong, or the status of an answer that has none."""
    return str(error.response.get("Error", {}).get("Code"))


def error_status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
