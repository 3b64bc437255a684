"""The `check` command: reports what is right and wrong with the bucket. It changes nothing.

It needs the IAM actions of the service, which it tries on an object of its own, and
s3:GetLifecycleConfiguration, s3:GetBucketPublicAccessBlock and s3:GetBucketVersioning for the
bucket's configuration.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from service.bundles.record import lifecycle_days
from service.s3.bucket.findings import CALL_ERRORS, Finding, failure
from service.s3.bucket.initialization import lifecycle_rule_id
from service.s3.bucket.permissions import check_permissions
from service.s3.calls import NETWORK_ERRORS, NO_RESPONSE, error_code, error_status
from service.s3.capabilities import DENIALS, NOT_KEPT, REFUSALS, Probe, describe, keeps_records
from service.s3.records import Records

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import LifecycleRuleOutputTypeDef

MAX_CLOCK_SKEW = 60.0
"""Seconds that this machine's clock may differ from S3's. From 900 s, S3 refuses requests."""

_CREDENTIALS = ("credentials", "refused", "set an access key and the secret that belongs to it")
_REGION = ("region", "not the bucket's region", "set AWS_DEFAULT_REGION to the bucket's region")
_CONNECTION_PROBLEMS = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "XAdminUserNotFound": _CREDENTIALS,  # versitygw's InvalidAccessKeyId.
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": ("credentials", "expired", "renew them"),
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "NoSuchBucket": (
        "bucket",
        "does not exist",
        "run init-bucket, or set HISTORY_BUCKET to another",
    ),
    "RequestTimeTooSkewed": ("clock", "more than 15 minutes off", "set this machine's clock"),
}


async def check_bucket(  # noqa: PLR0913 - the settings, each by its name
    client: S3Client,
    *,
    bucket: str,
    prefix: str,
    retention: int,
    records: Records,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Finding]:
    """Yield a finding for everything that the service needs of its bucket.

    If the bucket cannot be reached, there is one finding, which says why.
    """
    try:
        response = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except CALL_ERRORS as error:
        yield _connection_problem(error, client)
        return
    headers = response["ResponseMetadata"]["HTTPHeaders"]
    yield Finding("endpoint", f"{client.meta.endpoint_url} responds")
    yield Finding("credentials", "accepted")
    yield Finding("bucket", f"{bucket} exists")
    yield await _check_region(client, bucket)
    yield _check_clock(headers, clock())
    permitted = True
    async for finding in check_permissions(client, bucket, f"{prefix}{uuid4()}", records):
        permitted = permitted and finding.ok
        yield finding
    if permitted:
        yield await _check_records(client, bucket, prefix, records)
        with suppress(*CALL_ERRORS):
            yield Finding("store", await describe(client, bucket, prefix))
    for subject, check in _CONFIGURATION_CHECKS.items():
        try:
            yield await check(client, bucket, prefix, retention)
        except CALL_ERRORS as error:
            yield _unreadable(subject, error)


def _connection_problem(error: Exception, client: S3Client) -> Finding:
    """Say why the bucket cannot be reached."""
    if isinstance(error, ClientError):
        code = error_code(error)
        if code in _CONNECTION_PROBLEMS:
            subject, message, remedy = _CONNECTION_PROBLEMS[code]
            return Finding(subject, f"{message} ({code})", remedy)
        return failure("s3:ListBucket", error, "allow it for these credentials, or use others")
    kind = type(error).__name__
    if isinstance(error, NETWORK_ERRORS) or not isinstance(error, BotoCoreError):
        message = f"{client.meta.endpoint_url} cannot be reached ({kind})"
        return Finding("endpoint", message, "check AWS_ENDPOINT_URL_S3 and the network")
    remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
    return Finding("credentials", f"missing or unusable ({kind})", remedy)


async def _check_region(client: S3Client, bucket: str) -> Finding:
    """Compare the client's region with the bucket's, if the store tells the bucket's region."""
    ours, actual = client.meta.region_name, None
    try:
        with suppress(ClientError):
            actual = (await client.head_bucket(Bucket=bucket)).get("BucketRegion")
    except NO_RESPONSE as error:
        return failure("region", error, "")
    if actual is None or ours in {actual, "aws-global"}:
        return Finding("region", ours)
    remedy = f"set AWS_DEFAULT_REGION={actual}: until then every request is redirected"
    return Finding("region", f"{ours}, but the bucket is in {actual}", remedy)


def _check_clock(headers: Mapping[str, str], now: float) -> Finding:
    try:
        skew = now - parsedate_to_datetime(headers.get("date", "")).timestamp()
    except ValueError:
        return Finding("clock", "S3 sends no date to compare with")
    message = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} S3"
    if abs(skew) <= MAX_CLOCK_SKEW:
        return Finding("clock", message)
    remedy = (
        "set this machine's clock: it decides when bundles expire, and S3 refuses requests from a "
        "clock that is 15 minutes off"
    )
    return Finding("clock", message, remedy)


async def _check_records(client: S3Client, bucket: str, prefix: str, records: Records) -> Finding:
    """Check that the store keeps records where HISTORY_RECORDS wants them."""
    try:
        if await keeps_records(Probe(client, bucket, prefix), records):
            return Finding("records", f"kept in {records}")
    except CALL_ERRORS as error:
        return failure("records", error, "allow the denied actions above")
    problem, _, remedy = NOT_KEPT[records].partition(": ")
    return Finding("records", problem, remedy)


async def _check_lifecycle(client: S3Client, bucket: str, prefix: str, retention: int) -> Finding:
    """Check that S3 removes bundles, and none before it expires."""
    rules: Sequence[LifecycleRuleOutputTypeDef] = []
    try:
        response = await client.get_bucket_lifecycle_configuration(Bucket=bucket)
        rules = response.get("Rules", [])
    except ClientError as error:
        if error_code(error) != "NoSuchLifecycleConfiguration":
            raise
    return check_rules(rules, prefix, retention)


def check_rules(
    rules: Sequence[LifecycleRuleOutputTypeDef], prefix: str, retention: int
) -> Finding:
    """Check the lifecycle rules of a bucket.

    A rule for some tags or sizes does not count as one that removes the bundles. If it removes
    objects early, the finding says so. It is a problem only for sizes: the service does not set
    tags other than those of the record. A rule with a date is one too, because from that day on it
    removes new bundles as well (S3 API, LifecycleExpiration).
    """
    days = lifecycle_days(retention)
    relevant = [
        rule
        for rule in rules
        if rule["Status"] == "Enabled" and _covers(_prefix_of(rule), prefix, partly=True)
    ]
    unconditional = [rule for rule in relevant if not _conditions(rule)]
    covering = [rule for rule in unconditional if _covers(_prefix_of(rule), prefix)]
    expirations = [_days(rule) for rule in unconditional if _days(rule)]
    early = [rule for rule in relevant if _conditions(rule) and 0 < _days(rule) < days]
    tagged = [rule for rule in early if _conditions(rule) & {"Tag", "Tags"}]
    dated = [
        rule
        for rule in relevant
        if "Date" in rule.get("Expiration", {}) and not _conditions(rule) & {"Tag", "Tags"}
    ]
    problem = None
    if any(expiration < days for expiration in expirations):
        problem = (
            f"bundles are removed after {min(expirations)} days, but have to be kept for "
            f"{retention / 86_400:g} days: the rule has to keep them for {days} days"
        )
    elif sized := [rule for rule in early if rule not in tagged]:
        problem = (
            f"the rule {sized[0].get('ID')} removes bundles of some sizes after {_days(sized[0])} "
            f"days: it has to keep them for {days} days"
        )
    elif not any(_days(rule) for rule in covering):
        problem = f"no rule removes the objects under {prefix}"
    elif dated:
        problem = (
            f"the rule {dated[0].get('ID')} removes bundles from a date on, however new they are: "
            f"it has to keep them for {days} days"
        )
    elif not any(
        "AbortIncompleteMultipartUpload" in rule or rule.get("ID") == lifecycle_rule_id(prefix)
        for rule in covering
    ):
        # A rule of init-bucket without this setting means that the store has dropped it. MinIO
        # does, and aborts abandoned uploads by itself.
        problem = "no rule aborts abandoned multipart uploads"
    if problem is None:
        notes = [
            f"; the rule {rule.get('ID')} removes objects with its tags after {_days(rule)} days, "
            "so do not add these tags to bundles"
            for rule in tagged
        ]
        message = f"bundles are removed after {min(expirations)} days{''.join(notes)}"
        return Finding("lifecycle", message)
    remedy = (
        "run init-bucket, and change every other rule that removes bundles earlier; if this store "
        "does not keep the rule, run message-history-server sweep regularly"
    )
    return Finding("lifecycle", problem, remedy)


def _days(rule: LifecycleRuleOutputTypeDef) -> int:
    """Return after how many days a rule removes objects, or 0 if it does not, or has a date."""
    return rule.get("Expiration", {}).get("Days", 0)


def _prefix_of(rule: LifecycleRuleOutputTypeDef) -> str:
    return str(_filters(rule).get("Prefix") or rule.get("Prefix", ""))


def _conditions(rule: LifecycleRuleOutputTypeDef) -> set[str]:
    """Return the names of a rule's filters for tags and sizes, with which it skips some objects."""
    return {name for name, value in _filters(rule).items() if value} - {"And", "Prefix"}


def _filters(rule: LifecycleRuleOutputTypeDef) -> dict[str, Any]:
    filters: Any = rule.get("Filter", {})
    return {**filters, **filters.get("And", {})}


def _covers(rule: str, prefix: str, *, partly: bool = False) -> bool:
    """Return whether a rule's prefix covers all keys of `prefix`, or with `partly` some of them."""
    return prefix.startswith(rule) or (partly and rule.startswith(prefix))


async def _check_public_access(client: S3Client, bucket: str, *_: object) -> Finding:
    try:
        response = await client.get_public_access_block(Bucket=bucket)
    except ClientError as error:
        if error_code(error) != "NoSuchPublicAccessBlockConfiguration":
            raise
        flags: Mapping[str, Any] = {}
    else:
        flags = response["PublicAccessBlockConfiguration"]
    # Not BlockPublicAcls: init-bucket leaves it off on stores where it stops uploads.
    required = ("IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    if missing := [name for name in required if not flags.get(name)]:
        remedy = "run init-bucket, which says whether this store keeps it"
        return Finding("public access", f"{missing[0]} is not set", remedy)
    return Finding("public access", "blocked")


async def _check_versioning(client: S3Client, bucket: str, *_: object) -> Finding:
    status = (await client.get_bucket_versioning(Bucket=bucket)).get("Status")
    if status == "Enabled":
        remedy = "suspend it: deleted and expired bundles would be kept as old versions"
        return Finding("versioning", "on", remedy)
    return Finding("versioning", "off")


_CONFIGURATION_CHECKS: Mapping[str, Callable[[S3Client, str, str, int], Awaitable[Finding]]] = {
    "lifecycle": _check_lifecycle,
    "public access": _check_public_access,
    "versioning": _check_versioning,
}


_WITHOUT = {
    "lifecycle": "run message-history-server sweep regularly to remove expired bundles",
    "public access": "keep the bucket's ACLs private",
    "versioning": "nothing to do",
}


def _unreadable(subject: str, error: Exception) -> Finding:
    """Report a configuration that the store does not have or does not show."""
    if not isinstance(error, ClientError):
        return failure(subject, error, "")
    code = error_code(error)
    if error_status(error) in DENIALS:
        remedy = (
            "allow these credentials s3:GetLifecycleConfiguration, s3:GetBucketPublicAccessBlock "
            "and s3:GetBucketVersioning, or check it yourself"
        )
        return Finding(subject, f"reading is denied ({code})", remedy)
    if error_status(error) not in REFUSALS:
        return failure(subject, error, "")
    return Finding(subject, f"not offered by this store ({code}); {_WITHOUT[subject]}")
