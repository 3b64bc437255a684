"""The `init-bucket` command: creates and configures the bucket.

It sets the lifecycle, the public access block and the default encryption. This needs the IAM
actions s3:ListBucket, s3:CreateBucket, s3:GetLifecycleConfiguration,
s3:PutLifecycleConfiguration, s3:GetBucketPublicAccessBlock, s3:PutBucketPublicAccessBlock,
s3:GetEncryptionConfiguration and s3:PutEncryptionConfiguration, and for probe objects s3:PutObject,
s3:GetObject, s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucketMultipartUploads,
s3:PutObjectTagging and s3:GetObjectTagging (the last two not if records are in metadata). `storage`
lists the actions of the service itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from service.bundles.record import lifecycle_days
from service.errors import BucketError
from service.s3.calls import NETWORK_ERRORS, error_code, error_status
from service.s3.capabilities import DENIALS, NOT_KEPT, Probe, describe, keeps_records
from service.s3.records import Records

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import LifecycleRuleOutputTypeDef

_NO_CONFIGURATION = {
    "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration",
    "ServerSideEncryptionConfigurationNotFoundError",
}

_SWEEP = "nothing removes expired bundles: run message-history-server sweep regularly"

_END_TO_END = "clients encrypt their bundles anyway"

_PRIVATE_ACLS = "keep the bucket's ACLs private"

_BLOCKED = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
_BLOCKED_ON_CEPH = {**_BLOCKED, "BlockPublicAcls": False}
"""Ceph 16 also refuses the owner's uploads if BlockPublicAcls is set."""


def lifecycle_rule_id(prefix: str) -> str:
    """Return the ID of the lifecycle rule for this prefix."""
    return f"message-history-server {prefix}"


def lifecycle_rule(prefix: str, retention: int) -> LifecycleRuleOutputTypeDef:
    """Return the rule that removes expired bundles and abandoned multipart uploads.

    `retention` is in seconds. The rule keeps bundles for its whole days plus one, so S3 never
    removes a bundle before it expires. It has no tag filter, because not every store supports one.
    """
    return {
        "ID": lifecycle_rule_id(prefix),
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": lifecycle_days(retention)},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }


async def initialize(
    client: S3Client, *, bucket: str, prefix: str, retention: int, records: Records
) -> AsyncIterator[str]:
    """Create the bucket, or update its configuration; yields one line of output for each step.

    Safe to repeat: correct settings are not changed, and lifecycle rules of others are kept. Each
    setting is read back, and undone if the store refuses to write with it. Raises `BucketError`,
    which says what to do next, only if bundles cannot be kept safely.
    """
    with _translate_errors(bucket):
        yield await _bucket(client, bucket)
        yield await _lifecycle(client, bucket, lifecycle_rule(prefix, retention))
        yield await _public_access_block(client, bucket, prefix)
        yield await _encryption(client, bucket, prefix)
        if error := await _write_error(client, bucket, prefix):
            raise _unwritable(error)
        if not await keeps_records(Probe(client, bucket, prefix), records):
            raise BucketError(NOT_KEPT[records])
        yield f"records: kept in {records}"
        yield f"store: {await describe(client, bucket, prefix)}"


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
    try:
        rules = await _lifecycle_rules(client, bucket)
        before = _own_rule(rules, rule)
        others = [old for old in rules if old.get("ID") != rule["ID"]]
        if before != rule:
            await client.put_bucket_lifecycle_configuration(
                Bucket=bucket, LifecycleConfiguration={"Rules": [*others, rule]}
            )
            rules = await _lifecycle_rules(client, bucket)
    except ClientError as error:
        return _not_offered(error, f"lifecycle: not offered by this store; {_SWEEP}")
    kept = _own_rule(rules, rule)
    if kept.get("Expiration") != rule["Expiration"]:
        return f"lifecycle: this store does not keep the rule; {_SWEEP}"
    effect = f"bundles are removed after {days} days, abandoned uploads after 1"
    if "AbortIncompleteMultipartUpload" not in kept:
        effect = (
            f"bundles are removed after {days} days; this store does not keep "
            "AbortIncompleteMultipartUpload: unless it removes abandoned uploads by itself, run "
            "message-history-server sweep regularly"
        )
    if before == kept:
        return f"lifecycle: unchanged ({effect})"
    days_before = before.get("Expiration", {}).get("Days", 0)
    if days_before > days:
        return (
            f"lifecycle: shortened from {days_before} days; bundles with a later expiry are "
            f"removed early ({effect})"
        )
    return f"lifecycle: set ({effect})"


async def _lifecycle_rules(client: S3Client, bucket: str) -> list[LifecycleRuleOutputTypeDef]:
    with _absence_allowed():
        return (await client.get_bucket_lifecycle_configuration(Bucket=bucket))["Rules"]
    return []


def _own_rule(
    rules: list[LifecycleRuleOutputTypeDef], rule: LifecycleRuleOutputTypeDef
) -> LifecycleRuleOutputTypeDef:
    """Return what the store has of our rule: those of its fields that we set."""
    ours: Any = next((old for old in rules if old.get("ID") == rule["ID"]), {})
    return {name: ours[name] for name in rule if name in ours}  # type: ignore[return-value]


async def _public_access_block(  # noqa: PLR0911 - one line of output for each outcome
    client: S3Client, bucket: str, prefix: str
) -> str:
    """Block public access; without BlockPublicAcls if that stops uploads, as on Ceph 16."""

    async def current() -> Mapping[str, bool]:
        with _absence_allowed():
            response = await client.get_public_access_block(Bucket=bucket)
            return response.get("PublicAccessBlockConfiguration", {})  # type: ignore[return-value]
        return {}

    try:
        before = await current()
        if before == _BLOCKED:
            return "public access: already blocked"
        if before == _BLOCKED_ON_CEPH and not client.meta.endpoint_url.endswith("amazonaws.com"):
            return "public access: already blocked, except BlockPublicAcls"
        could_write = await _write_error(client, bucket, prefix) is None
        for block in (_BLOCKED, _BLOCKED_ON_CEPH):
            await client.put_public_access_block(
                Bucket=bucket,
                PublicAccessBlockConfiguration=block,  # type: ignore[arg-type]
            )
            if not could_write or await _write_error(client, bucket, prefix) is None:
                break
        else:
            await client.delete_public_access_block(Bucket=bucket)
            return (
                f"public access: not blocked, as this store then refuses uploads; {_PRIVATE_ACLS}"
            )
        if await current() != block:
            return f"public access: this store does not keep the block; {_PRIVATE_ACLS}"
    except ClientError as error:
        return _not_offered(
            error, f"public access: block not offered by this store; {_PRIVATE_ACLS}"
        )
    if block == _BLOCKED_ON_CEPH:
        return "public access: blocked, except BlockPublicAcls (it stops uploads on this store)"
    return "public access: blocked"


async def _write_error(client: S3Client, bucket: str, prefix: str) -> ClientError | None:
    """Try to write an object, and remove it again; return the store's error if it refuses."""
    key = f"{prefix}probe-{uuid4()}"
    try:
        await client.put_object(Bucket=bucket, Key=key, Body=b"")
        await client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        return error
    return None


def _unwritable(error: ClientError) -> Exception:
    """Explain that the store writes no objects, although this command has changed nothing."""
    if error_status(error) < HTTPStatus.INTERNAL_SERVER_ERROR:
        return error
    return BucketError(
        f"This store fails to write an object ({error_code(error)}): check its health and its "
        "configuration, such as the default encryption of the bucket."
    )


async def _encryption(client: S3Client, bucket: str, prefix: str) -> str:
    try:
        if await _is_encrypted(client, bucket):
            return "encryption: already on"
        could_write = await _write_error(client, bucket, prefix) is None
        await client.put_bucket_encryption(
            Bucket=bucket,
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
        )
        if could_write and (refusal := await _write_error(client, bucket, prefix)):
            await client.delete_bucket_encryption(Bucket=bucket)
            return (
                "encryption: not possible on this store, which then refuses uploads "
                f"({error_code(refusal)}), so it is off again; {_END_TO_END}"
            )
        if not await _is_encrypted(client, bucket):
            return f"encryption: this store does not keep it; {_END_TO_END}"
    except ClientError as error:
        return _not_offered(error, f"encryption: not offered by this store; {_END_TO_END}")
    return "encryption: set (AES256)"


async def _is_encrypted(client: S3Client, bucket: str) -> bool:
    with _absence_allowed():
        encryption = await client.get_bucket_encryption(Bucket=bucket)
        # Ceph 16 responds without rules. MinIO without a KMS refuses to set any.
        return bool(encryption["ServerSideEncryptionConfiguration"].get("Rules"))
    return False


def _not_offered(error: ClientError, message: str) -> str:
    """Return the output line for a setting that the store does not offer.

    Raises `error` if it is about credentials, or a fault of the store.
    """
    status = error_status(error)
    if status != HTTPStatus.NOT_IMPLEMENTED and (
        status in DENIALS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
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
        remedy = (
            "check AWS_ENDPOINT_URL_S3 and the network"
            if isinstance(error, NETWORK_ERRORS)
            else "check the credentials"
        )
        raise BucketError(f"S3 cannot be reached ({error}): {remedy}.") from error
