"""Telling what is right and what is wrong with a bucket, line by line; nothing is changed.

The IAM actions of `check`: those of the service, which it tries on a probe of its own, and for the
rest of the bucket s3:GetLifecycleConfiguration, s3:GetBucketPublicAccessBlock and
s3:GetBucketVersioning.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from service.client import NETWORK_ERRORS, error_code, error_status
from service.record import lifecycle_days

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import LifecycleRuleOutputTypeDef

MAX_SKEW = 60.0
"""Seconds that this machine's clock may be off; S3 refuses requests from 900 on."""

_CREDENTIALS = ("credentials", "are refused", "set a key and a secret that belong together")
_REGION = ("region", "is not the bucket's", "set AWS_DEFAULT_REGION to where the bucket is")
_OBSTACLES = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": ("credentials", "have expired", "renew them"),
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "NoSuchBucket": ("bucket", "is not there", "run init-bucket, or set HISTORY_BUCKET to another"),
    "RequestTimeTooSkewed": ("clock", "is too far off for S3", "set this machine's clock"),
}
_FORBIDDEN = ("s3:ListBucket", "is refused", "allow it to these credentials, or use others")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was seen, and where that is wrong, what to do."""

    subject: str
    words: str
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        return self.remedy is None


async def examine(
    client: S3Client,
    *,
    bucket: str,
    prefix: str,
    retention: int,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Finding]:
    """Yield a finding for everything that bundles need of their bucket.

    Where the bucket cannot be reached there is one finding, on what stands in the way.
    """
    try:
        answer = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except (ClientError, BotoCoreError) as error:
        yield _obstacle(error, client)
        return
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    yield Finding("endpoint", f"{client.meta.endpoint_url} answers")
    yield Finding("credentials", "are taken")
    yield Finding("bucket", f"{bucket} is there")
    yield await _region(client, bucket)
    yield _skew(headers, clock())
    async for finding in _permissions(client, bucket, f"{prefix}{uuid4()}"):
        yield finding
    for look in (_lifecycle, _public_access, _versioning):
        try:
            yield await look(client, bucket, prefix, retention)
        except ClientError as error:
            yield _not_seen(look.__name__.strip("_").replace("_", " "), error)


def _obstacle(error: Exception, client: S3Client) -> Finding:
    """What keeps the bucket from being looked at."""
    if isinstance(error, ClientError):
        code = error_code(error)
        subject, words, remedy = _OBSTACLES.get(code, _FORBIDDEN)
        return Finding(subject, f"{words} ({code})", remedy)
    kind = type(error).__name__
    if isinstance(error, NETWORK_ERRORS):
        words = f"{client.meta.endpoint_url} cannot be reached ({kind})"
        return Finding("endpoint", words, "check AWS_ENDPOINT_URL_S3 and the network")
    remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
    return Finding("credentials", f"there are none to use ({kind})", remedy)


async def _region(client: S3Client, bucket: str) -> Finding:
    """Where the store tells its buckets' regions, whether it is the one that requests name."""
    named, its = client.meta.region_name, None
    with suppress(ClientError):
        its = (await client.head_bucket(Bucket=bucket)).get("BucketRegion")
    if its is None or named in {its, "aws-global"}:
        return Finding("region", named)
    remedy = f"set AWS_DEFAULT_REGION={its}: every request takes a detour"
    return Finding("region", f"{named}, but the bucket's is {its}", remedy)


def _skew(headers: Mapping[str, str], now: float) -> Finding:
    try:
        skew = now - parsedate_to_datetime(headers.get("date", "")).timestamp()
    except ValueError:
        return Finding("clock", "S3 does not tell the time")
    words = f"is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} S3's"
    if abs(skew) <= MAX_SKEW:
        return Finding("clock", words)
    remedy = "set this machine's clock: bundles end by it, and S3 refuses who is 15 minutes off"
    return Finding("clock", words, remedy)


class _Probe:
    """An object and a multipart upload on which every permission is tried.

    It has no tags that would make it a bundle, and is removed by the last of the tries.
    """

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client = client
        self._where: Any = {"Bucket": bucket, "Key": key}
        self._upload = ""

    async def put(self) -> None:
        await self._client.put_object(**self._where, Body=b"probe")

    async def put_tags(self) -> None:
        tags: Any = {"TagSet": [{"Key": "probe", "Value": "probe"}]}
        await self._client.put_object_tagging(**self._where, Tagging=tags)

    async def get_tags(self) -> None:
        await self._client.get_object_tagging(**self._where)

    async def get(self) -> None:
        async with (await self._client.get_object(**self._where))["Body"] as body:
            await body.read()

    async def create_upload(self) -> None:
        self._upload = (await self._client.create_multipart_upload(**self._where))["UploadId"]

    async def list_uploads(self) -> None:
        where = {"Bucket": self._where["Bucket"], "Prefix": self._where["Key"]}
        await self._client.list_multipart_uploads(**where)

    async def abort_upload(self) -> None:
        await self._client.abort_multipart_upload(**self._where, UploadId=self._upload)

    async def delete(self) -> None:
        await self._client.delete_object(**self._where)

    async def miss(self) -> None:
        """Without s3:ListBucket, S3 answers 403 for an object that is not there."""
        try:
            await self._client.head_object(**self._where)
        except ClientError as error:
            if error_status(error) != HTTPStatus.NOT_FOUND:
                raise


_TRIES = (
    ("s3:PutObject", _Probe.put, None),
    ("s3:PutObjectTagging", _Probe.put_tags, _Probe.put),
    ("s3:GetObjectTagging", _Probe.get_tags, _Probe.put),
    ("s3:GetObject", _Probe.get, _Probe.put),
    ("s3:PutObject (multipart)", _Probe.create_upload, None),
    ("s3:ListBucketMultipartUploads", _Probe.list_uploads, None),
    ("s3:AbortMultipartUpload", _Probe.abort_upload, _Probe.create_upload),
    ("s3:DeleteObject", _Probe.delete, None),
    ("s3:ListBucket", _Probe.miss, _Probe.delete),
)
"""Actions, how each is tried, and what must have worked before."""


async def _permissions(client: S3Client, bucket: str, key: str) -> AsyncIterator[Finding]:
    probe, worked = _Probe(client, bucket, key), set[object]()
    for action, attempt, needed in _TRIES:
        if needed is not None and needed not in worked:
            continue
        try:
            await attempt(probe)
        except (ClientError, BotoCoreError) as error:
            code = error_code(error) if isinstance(error, ClientError) else type(error).__name__
            remedy = f"allow it on {bucket} in the credentials' policies and in the bucket's"
            if attempt in {_Probe.delete, _Probe.abort_upload}:
                remedy += f"; the probe {key} is left to the lifecycle"
            yield Finding(action, f"is refused ({code})", remedy)
        else:
            worked.add(attempt)
            yield Finding(action, "is allowed")


async def _lifecycle(client: S3Client, bucket: str, prefix: str, retention: int) -> Finding:
    """Whether bundles leave by themselves, and none before its end."""
    days, rules = lifecycle_days(retention), list[Any]()
    try:
        rules = (await client.get_bucket_lifecycle_configuration(Bucket=bucket))["Rules"]
    except ClientError as error:
        if error_code(error) != "NoSuchLifecycleConfiguration":
            raise
    touching = [
        rule
        for rule in rules
        if rule["Status"] == "Enabled" and _covers(_prefix_of(rule), prefix, either=True)
    ]
    expiring = [rule["Expiration"].get("Days", 0) for rule in touching if "Expiration" in rule]
    covering = [rule for rule in touching if _covers(_prefix_of(rule), prefix)]
    wrong = None
    if any(found < days for found in expiring):
        wrong = f"bundles go after {min(expiring)} days, but are promised {retention / 86_400:g}"
    elif not any("Expiration" in rule for rule in covering):
        wrong = f"no rule removes what is under {prefix}"
    elif not any("AbortIncompleteMultipartUpload" in rule for rule in covering):
        wrong = "no rule aborts multipart uploads that were left"
    if wrong is None:
        return Finding("lifecycle", f"bundles go after {min(expiring)} days")
    return Finding("lifecycle", wrong, "run init-bucket, and lengthen what others have set")


def _prefix_of(rule: LifecycleRuleOutputTypeDef) -> str:
    found: Any = rule.get("Filter", {})
    return str(found.get("Prefix") or found.get("And", {}).get("Prefix") or rule.get("Prefix", ""))


def _covers(rule: str, prefix: str, *, either: bool = False) -> bool:
    """Whether a rule's prefix has all keys of ours, or with `either` some of them."""
    return prefix.startswith(rule) or (either and rule.startswith(prefix))


async def _public_access(client: S3Client, bucket: str, *_: object) -> Finding:
    try:
        answer = await client.get_public_access_block(Bucket=bucket)
    except ClientError as error:
        if error_code(error) != "NoSuchPublicAccessBlockConfiguration":
            raise
        flags: Mapping[str, Any] = {}
    else:
        flags = answer["PublicAccessBlockConfiguration"]
    asked = ("IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    if missing := [name for name in asked if not flags.get(name)]:
        return Finding("public access", f"not blocked by {missing[0]}", "run init-bucket")
    return Finding("public access", "is blocked")


async def _versioning(client: S3Client, bucket: str, *_: object) -> Finding:
    status = (await client.get_bucket_versioning(Bucket=bucket)).get("Status")
    if status == "Enabled":
        remedy = "suspend it: a bundle that was deleted or has expired would stay as a version"
        return Finding("versioning", "is on", remedy)
    return Finding("versioning", "is off")


def _not_seen(subject: str, error: ClientError) -> Finding:
    """A part of the bucket's configuration that was not shown: not offered here, or forbidden."""
    code = error_code(error)
    if error_status(error) == HTTPStatus.FORBIDDEN:
        remedy = "allow s3:GetLifecycleConfiguration, s3:GetBucketPublicAccessBlock and "
        remedy += "s3:GetBucketVersioning to who runs this, or look for yourself"
        return Finding(subject, f"may not be looked at ({code})", remedy)
    return Finding(subject, f"this store has none ({code})")
