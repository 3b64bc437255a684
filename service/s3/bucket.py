"""The `init-bucket` command: creates and configures the bucket.

It sets the lifecycle, the public access block and the default encryption. This needs the IAM
actions s3:ListBucket, s3:CreateBucket, s3:GetLifecycleConfiguration,
s3:PutLifecycleConfiguration, s3:GetBucketPublicAccessBlock, s3:PutBucketPublicAccessBlock,
s3:GetEncryptionConfiguration and s3:PutEncryptionConfiguration, and s3:PutObject and
s3:DeleteObject for a probe object. `storage` lists the actions of the service itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from service.bundles.record import lifecycle_days
from service.errors import BucketError
from service.s3.calls import error_code, error_status

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
"""Ceph 16 also refuses the owner's uploads if BlockPublicAcls is set."""


def lifecycle_rule(prefix: str, retention: int) -> LifecycleRuleOutputTypeDef:
    """Return the rule that removes expired bundles and abandoned multipart uploads.

    `retention` is in seconds. The rule keeps bundles for its whole days plus one, so S3 never
    removes a bundle before it expires. It has no tag filter, because not every store supports one.
    """
    return {
        "ID": f"message-history-server {prefix}",
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": lifecycle_days(retention)},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }


async def initialize(
    client: S3Client, *, bucket: str, prefix: str, retention: int
) -> AsyncIterator[str]:
    """Create the bucket, or update its configuration; yields one line of output for each step.

    Safe to repeat: correct settings are not changed, and lifecycle rules of others are kept. Raises
    `BucketError`, which says what to do next.
    """
    with _translate_errors(bucket):
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
        return f"bucket {bucket}: exists"
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
        return f"bucket {bucket}: exists"
    return f"bucket {bucket}: created"


async def _lifecycle(client: S3Client, bucket: str, rule: LifecycleRuleOutputTypeDef) -> str:
    days = rule["Expiration"]["Days"]
    effect = f"bundles are removed after {days} days, abandoned uploads after 1"
    rules: list[LifecycleRuleOutputTypeDef] = []
    with _absence_allowed():
        configuration = await client.get_bucket_lifecycle_configuration(Bucket=bucket)
        rules = configuration["Rules"]
    ours = [old for old in rules if old.get("ID") == rule["ID"]]
    if ours and all(ours[0].get(name) == value for name, value in rule.items()):
        return f"lifecycle: unchanged ({effect})"
    others = [old for old in rules if old.get("ID") != rule["ID"]]
    await client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [*others, rule]}
    )
    before = ours[0].get("Expiration", {}).get("Days", 0) if ours else 0
    if before > days:
        return (
            f"lifecycle: shortened from {before} days; bundles with a later expiry are removed "
            f"early ({effect})"
        )
    return f"lifecycle: set ({effect})"


async def _public_access_block(client: S3Client, bucket: str, prefix: str) -> str:
    """Block public access; without BlockPublicAcls if that stops uploads, as on Ceph 16."""

    async def put(block: Mapping[str, bool]) -> None:
        await client.put_public_access_block(
            Bucket=bucket,
            PublicAccessBlockConfiguration=block,  # type: ignore[arg-type]
        )

    current: object = None
    try:
        with _absence_allowed():
            response = await client.get_public_access_block(Bucket=bucket)
            current = response.get("PublicAccessBlockConfiguration")
        if current == _BLOCKED:
            return "public access: already blocked"
        if current == _BLOCKED_ON_CEPH and not client.meta.endpoint_url.endswith("amazonaws.com"):
            return "public access: already blocked, except BlockPublicAcls"
        could_write = await _writable(client, bucket, prefix)
        await put(_BLOCKED)
        if could_write and not await _writable(client, bucket, prefix):
            await put(_BLOCKED_ON_CEPH)
            return "public access: blocked, except BlockPublicAcls (it stops uploads on this store)"
    except ClientError as error:
        return _not_offered(
            error, "public access: block not offered by this store; keep the bucket's ACLs private"
        )
    return "public access: blocked"


async def _writable(client: S3Client, bucket: str, prefix: str) -> bool:
    """Return whether these credentials can write an object; the object is removed again."""
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
        with _absence_allowed():
            encryption = await client.get_bucket_encryption(Bucket=bucket)
            # Ceph 16 responds without rules. MinIO without a KMS refuses to set any.
            if encryption["ServerSideEncryptionConfiguration"].get("Rules"):
                return "encryption: already on"
        await client.put_bucket_encryption(
            Bucket=bucket,
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
        )
    except ClientError as error:
        return _not_offered(
            error, "encryption: not offered by this store; clients encrypt their bundles anyway"
        )
    return "encryption: set (AES256)"


def _not_offered(error: ClientError, message: str) -> str:
    """Return the output line for a setting that the store does not offer.

    Raises `error` if it is about credentials, or a fault of the store.
    """
    status = error_status(error)
    if status != HTTPStatus.NOT_IMPLEMENTED and (
        status == HTTPStatus.FORBIDDEN or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        raise error
    return f"{message} ({error_code(error)})"


@contextmanager
def _absence_allowed() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if error_code(error) not in _NO_CONFIGURATION:
            raise


@contextmanager
def _translate_errors(bucket: str) -> Iterator[None]:
    """Turn errors of S3 into a `BucketError`, one sentence that says what to do."""
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        remedy = {
            "403": f"these credentials have no access to the bucket {bucket}, or it belongs to "
            "another account: use other credentials, or set HISTORY_BUCKET to another bucket",
            "BucketAlreadyExists": f"the bucket name {bucket} belongs to another account: set "
            "HISTORY_BUCKET to another name",
        }.get(code, str(error).removesuffix("."))
        raise BucketError(f"{remedy[0].upper()}{remedy[1:]}.") from error
    except BotoCoreError as error:
        raise BucketError(
            f"S3 cannot be reached ({error}): check AWS_ENDPOINT_URL_S3, the network and the "
            "credentials."
        ) from error
