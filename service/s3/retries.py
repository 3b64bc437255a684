"""Retries of requests to S3: botocore's standard mode, with more attempts and shorter waits.

`client` installs them, and counts each retry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiobotocore.retries.standard import (
    AioRetryHandler,
    AioRetryPolicy,
    AioStandardRetryConditions,
)
from botocore.retries.quota import RetryQuota
from botocore.retries.standard import ExponentialBackoff, RetryEventAdapter, RetryQuotaChecker

from service.s3.bodies import RequestBody

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

    from service.telemetry.metrics import Metrics

MAX_ATTEMPTS = 8
"""How many times a request is sent. Clients notice nothing if S3 refuses every fifth request."""

MAX_BACKOFF = 1
"""The longest wait between two attempts, in seconds. The first wait is 0.5 s on average."""


def configure_retries(client: S3Client, metrics: Metrics | None) -> None:
    """Replace the retry handler of the client.

    botocore's configuration sets the number of attempts, but not the backoff, which is up to 20 s.
    The retry quota stays as it is: if every request fails, most are not retried at all. A request
    whose body is no longer in memory is not retried either.
    """
    quota = RetryQuotaChecker(RetryQuota())
    handler = AioRetryHandler(
        AioRetryPolicy(
            AioStandardRetryConditions(max_attempts=MAX_ATTEMPTS),
            ExponentialBackoff(max_backoff=MAX_BACKOFF),
        ),
        RetryEventAdapter(),
        quota,  # type: ignore[arg-type]
    )

    async def needs_retry(**request: Any) -> float | None:
        if not _can_be_sent_again(request["request_dict"]["body"]):
            return None  # The caller gets the failure itself, not one of sending it again.
        delay: float | None = await handler.needs_retry(**request)
        if delay is not None and metrics is not None:
            metrics.s3_retries.labels(request["operation"].name).inc()
        return delay

    events = client.meta.events
    events.unregister("needs-retry.s3", unique_id="retry-config-s3")
    events.register("needs-retry.s3", needs_retry)  # type: ignore[arg-type]
    events.register("after-call.s3", quota.release_retry_quota)


def _can_be_sent_again(body: object) -> bool:
    return not isinstance(body, RequestBody) or body.can_be_sent_again
