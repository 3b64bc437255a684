"""Calls to S3: each has a timeout, is counted, and has its errors translated.

While the service runs, errors of botocore and aiohttp become errors of this service only here.
`client` translates those at the start, and `bucket` those of its commands.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    UnseekableStreamError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from service.errors import NotFound, StorageUnavailable
from service.telemetry import timing, tracing
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from aiobotocore.response import StreamingBody

_log = logging.getLogger(__name__)

CALL_TIMEOUT = 30.0
"""Seconds that a call may take with all its attempts, not counting the time for its body."""

MIN_UPLOAD_RATE = 128 * 1024
"""Bytes per second. A call that sends a body may take longer by its size at this rate."""

LOG_INTERVAL = 60.0
"""Seconds until the same problem with S3 is logged again."""

NETWORK_ERRORS = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    UnseekableStreamError,  # A request failed and its body is no longer in memory.
)
"""botocore's errors that are not about its settings or credentials."""


class IncompleteHead(Exception):
    """A response lacks headers that S3 always sends, so it does not come from S3."""


NO_RESPONSE = (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError, IncompleteHead)
"""What is raised if S3 sent no response, or an incomplete one."""

_ABSENT = {"NoSuchKey", "PreconditionFailed", "412"}
"""S3's error codes if there is no such object, or none with the ETag in If-Match."""

_ABSENT_ON_HEAD = {"404"}
"""A response to HEAD has no body, so only its status tells that the object does not exist.

In other responses, a 404 without an error code does not come from S3.
"""

_UNREACHABLE = "S3 cannot be reached"
_CODES_ON_HEAD = {"403": "AccessDenied", "404": "NoSuchBucket"}
_REMEDIES = {
    "NoSuchBucket": "create the bucket {bucket} with init-bucket, or set HISTORY_BUCKET to another",
    "RequestTimeTooSkewed": "set this machine's clock",
    _UNREACHABLE: "check AWS_ENDPOINT_URL_S3 and the network",
}
_CREDENTIALS = "check the credentials and their permissions on the bucket {bucket}"
_REMEDIES_BY_STATUS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "check AWS_DEFAULT_REGION and the documentation of this store",
    HTTPStatus.UNAUTHORIZED: _CREDENTIALS,
    HTTPStatus.FORBIDDEN: _CREDENTIALS,
    HTTPStatus.NOT_IMPLEMENTED: "this store does not offer it: run check, or use another store",
}
_DEFAULT_REMEDY = "check the health and the configuration of this store"


class BodyInterrupted(Exception):
    """A response body ended early. The bytes read before are valid."""


class S3Calls:
    """Wraps every call to S3. The name of the `bucket` appears in log lines about problems."""

    def __init__(self, bucket: str, metrics: Metrics) -> None:
        self.metrics = metrics
        self._bucket = bucket
        self._next_log: dict[str, float] = {}

    @asynccontextmanager
    async def call(
        self,
        operation: str,
        *,
        limit: float | None = None,
        size: int = 0,
        may_be_absent: bool = False,
    ) -> AsyncIterator[Callable[[int], None]]:
        """Run one call, with a timeout of `limit` seconds plus the time for a body of `size` bytes.

        The default limit is `CALL_TIMEOUT`. Yields a function that starts the default timeout anew,
        for a body of a given size.

        If the object does not exist, raises `NotFound` for a call that `may_be_absent`. Raises
        `StorageUnavailable` for everything else that goes wrong.
        """
        started, outcome = time.monotonic(), "failed"
        span = tracing.start_child(
            "client",
            f"S3/{operation}",
            {
                "rpc.system": "aws-api",
                "rpc.service": "S3",
                "rpc.method": operation,
                "aws.s3.bucket": self._bucket,
            },
        )
        try:
            with timing.measure("s3"):
                seconds = (limit or CALL_TIMEOUT) + size / MIN_UPLOAD_RATE
                async with asyncio.timeout(seconds if seconds < math.inf else None) as timeout:
                    yield partial(_restart, timeout)
            outcome = "ok"
        except ClientError as error:
            absent = _ABSENT_ON_HEAD if operation == "HeadObject" else _ABSENT
            if may_be_absent and error_code(error) in absent:
                outcome = "absent"
                raise NotFound from error
            if error_status(error) < HTTPStatus.INTERNAL_SERVER_ERROR:
                outcome = "refused"
            self.log_failure(operation, error)
            raise StorageUnavailable from error
        except NO_RESPONSE as error:
            self.log_failure(operation, error)
            raise StorageUnavailable from error
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            seconds = time.monotonic() - started
            self.metrics.s3.labels(operation, outcome).observe(seconds)
            if span is not None:
                failed = outcome in {"refused", "failed"}
                span.end({"history.outcome": outcome}, outcome if failed else None)

    async def read_chunk(self, body: StreamingBody) -> bytes:
        """Return the next bytes of a body that is not at its end. Raises `BodyInterrupted`.

        The body's own `read` would raise the limit on what aiohttp reads ahead.
        """
        try:
            with timing.measure("s3"):
                chunk: bytes = await body.content.readany()
        except NO_RESPONSE as error:
            raise BodyInterrupted from error
        if not chunk:
            raise BodyInterrupted
        return chunk

    def log_failure(self, operation: str, error: BaseException) -> None:
        """Log a problem with S3, at most once in `LOG_INTERVAL` for each cause.

        Only the type of the error is logged: its text may contain the URL with a bundle's id.
        """
        if isinstance(error, ClientError):
            cause = _CODES_ON_HEAD.get(error_code(error), error_code(error))
            remedy = _REMEDIES_BY_STATUS.get(error_status(error), _DEFAULT_REMEDY)
            message = f"S3 refuses {error.operation_name}: {cause}"
        elif isinstance(error, BotoCoreError) and not isinstance(error, NETWORK_ERRORS):
            cause, remedy = type(error).__name__, _CREDENTIALS
            message = f"S3 client cannot send {operation}: {cause}"
        else:
            cause, remedy = _UNREACHABLE, _DEFAULT_REMEDY
            message = f"{_UNREACHABLE} for {operation}: {type(error).__name__}"
        now = time.monotonic()
        if now >= self._next_log.get(cause, 0.0):
            self._next_log[cause] = now + LOG_INTERVAL
            remedy = _REMEDIES.get(cause, remedy).format(bucket=self._bucket)
            _log.warning("%s; %s", message, remedy)


def _restart(timeout: asyncio.Timeout, size: int) -> None:
    """Start the timeout of a call anew, unless the call has already ended."""
    seconds = CALL_TIMEOUT + size / MIN_UPLOAD_RATE
    with suppress(RuntimeError):
        timeout.reschedule(asyncio.get_running_loop().time() + seconds)


def error_code(error: ClientError) -> str:
    """Return S3's error code, or the HTTP status if the response has no code."""
    return str(error.response.get("Error", {}).get("Code"))


def error_status(error: ClientError) -> int:
    """Return the HTTP status of an S3 error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
