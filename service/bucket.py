"""Making a bucket ready: the bucket itself, its lifecycle, public-access block and encryption.

The IAM actions of `init-bucket`: s3:ListBucket, s3:CreateBucket, s3:GetLifecycleConfiguration,
s3:PutLifecycleConfiguration, s3:GetBucketPublicAccessBlock, s3:PutBucketPublicAccessBlock,
s3:GetEncryptionConfiguration, s3:PutEncryptionConfiguration, and s3:PutObject with s3:DeleteObject
for a probe. `storage` says what the service itself needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from service.client import error_code, error_status
from service.errors import BucketError
from service.record import lifecycle_days

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import LifecycleRuleOutputTypeDef

_NO_CONFIGURATION = {
    "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "ServerSideEncryptionConfigurationNotFoundError",
}

_BLOCKED = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
_BLOCKED_ON_CEPH = {**_BLOCKED, "BlockPublicAcls": False}


def lifecycle_rule(prefix: str, retention: int) -> LifecycleRuleOutputTypeDef:
    """The rule that removes expired bundles, and multipart uploads that nobody aborted.

    `retention` is in seconds; bundles stay for its whole days and one more, so that none leaves
    before its end. Without a tag filter, which not every store knows.
    """
    return {
        "ID": f"message-history-server {prefix}",
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": lifecycle_days(retention)},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }


async def prepare(
    client: S3Client, *, bucket: str, prefix: str, retention: int
) -> AsyncIterator[str]:
    """Make or update everything that bundles need of their bucket; yields a line for each step.

    Repeatable: what is right already is left alone, rules of others are kept. Raises
    `BucketError` with the next step to take.
    """
    with _explained(bucket):
        yield await _bucket(client, bucket)
        yield await _lifecycle(client, bucket, lifecycle_rule(prefix, retention))
        yield await _public_access_block(client, bucket, prefix)
        yield await _encryption(client, bucket)


async def _bucket(client: S3Client, bucket: str) -> str:
    try:
        await client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error_code(error) not in {"404", "NoSuchBucket"}:
            raise
    else:
        return f"bucket {bucket}: is there"
    region = client.meta.region_name
    try:
        if region in {"us-east-1", "aws-global"}:
            await client.create_bucket(Bucket=bucket)
        else:
            await client.create_bucket(
                Bucket=bucket,
                CreateBucketConfiguration={"LocationConstraint": region},  # type: ignore[typeddict-item]
            )
    except client.exceptions.BucketAlreadyOwnedByYou:
        return f"bucket {bucket}: is there"
    return f"bucket {bucket}: created"


async def _lifecycle(client: S3Client, bucket: str, rule: LifecycleRuleOutputTypeDef) -> str:
    days = rule["Expiration"]["Days"]
    words = f"bundles go after {days} days, abandoned uploads after 1"
    rules: list[LifecycleRuleOutputTypeDef] = []
    with _absent_allowed():
        configuration = await client.get_bucket_lifecycle_configuration(Bucket=bucket)
        rules = configuration["Rules"]
    ours = [old for old in rules if old.get("ID") == rule["ID"]]
    if ours and all(ours[0].get(name) == value for name, value in rule.items()):
        return f"lifecycle: is right ({words})"
    others = [old for old in rules if old.get("ID") != rule["ID"]]
    await client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [*others, rule]}
    )
    before = ours[0].get("Expiration", {}).get("Days", 0) if ours else 0
    if before > days:
        return f"lifecycle: shortened from {before} days; bundles promised more go early ({words})"
    return f"lifecycle: set ({words})"


async def _public_access_block(client: S3Client, bucket: str, prefix: str) -> str:
    """Block it wholly, but where that keeps the owner out too, as on Ceph 16, as far as can be."""

    async def put(block: Mapping[str, bool]) -> None:
        await client.put_public_access_block(
            Bucket=bucket,
            PublicAccessBlockConfiguration=block,  # type: ignore[arg-type]
        )

    found: object = None
    try:
        with _absent_allowed():
            answer = await client.get_public_access_block(Bucket=bucket)
            found = answer.get("PublicAccessBlockConfiguration")
        if found == _BLOCKED:
            return "public access: is blocked"
        if found == _BLOCKED_ON_CEPH and not client.meta.endpoint_url.endswith("amazonaws.com"):
            return "public access: is blocked but for BlockPublicAcls"
        could_write = await _writable(client, bucket, prefix)
        await put(_BLOCKED)
        if could_write and not await _writable(client, bucket, prefix):
            await put(_BLOCKED_ON_CEPH)
            return "public access: blocked but for BlockPublicAcls, which shuts uploads out here"
    except ClientError as error:
        return _not_offered(error, "public access: this store has no block; keep its ACLs private")
    return "public access: blocked"


async def _writable(client: S3Client, bucket: str, prefix: str) -> bool:
    """Whether an object can be put (and removed again) with these credentials."""
    key = f"{prefix}probe-{uuid4()}"
    try:
        await client.put_object(Bucket=bucket, Key=key, Body=b"")
        await client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error_status(error) != HTTPStatus.FORBIDDEN:
            raise
        return False
    return True


async def _encryption(client: S3Client, bucket: str) -> str:
    try:
        with _absent_allowed():
            encryption = await client.get_bucket_encryption(Bucket=bucket)
            # Ceph 16 answers without any, and MinIO without a KMS refuses to set one.
            if encryption["ServerSideEncryptionConfiguration"].get("Rules"):
                return "encryption: is on"
        await client.put_bucket_encryption(
            Bucket=bucket,
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
        )
    except ClientError as error:
        return _not_offered(
            error, "encryption: this store has none to turn on; bundles come encrypted anyway"
        )
    return "encryption: set (AES256)"


def _not_offered(error: ClientError, words: str) -> str:
    """Pass over a refusal of what AWS grants, unless it is one of credentials or a fault."""
    status = error_status(error)
    if status != HTTPStatus.NOT_IMPLEMENTED and (
        status == HTTPStatus.FORBIDDEN or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        raise error
    return f"{words} ({error_code(error)})"


@contextmanager
def _absent_allowed() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if error_code(error) not in _NO_CONFIGURATION:
            raise


@contextmanager
def _explained(bucket: str) -> Iterator[None]:
    """Say in one sentence what S3's answer means for who runs the command."""
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        remedy = {
            "403": f"these credentials may not use the bucket {bucket}, or it belongs to another "
            "account: use others, or choose another HISTORY_BUCKET",
            "BucketAlreadyExists": f"the name {bucket} is taken by another account: choose another "
            "HISTORY_BUCKET",
        }.get(code, str(error).removesuffix("."))
        raise BucketError(f"{remedy[0].upper()}{remedy[1:]}.") from error
    except BotoCoreError as error:
        raise BucketError(
            f"S3 cannot be reached ({error}): check AWS_ENDPOINT_URL_S3, the network and the "
            "credentials."
        ) from error
