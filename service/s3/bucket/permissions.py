"""Which S3 actions the credentials may use, tried on an object of its own. For `check`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from service.s3.bucket.findings import Finding, failure
from service.s3.calls import NO_RESPONSE, error_code, error_status
from service.s3.capabilities import NOT_KEPT, REFUSALS
from service.s3.records import Records, read_tags

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client


class _Probe:
    """An object and a multipart upload on which every permission is tried.

    The object has no valid record in its tags, so it is not a bundle. The attempts for
    AbortMultipartUpload and DeleteObject remove both again.
    """

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client = client
        self._location: Any = {"Bucket": bucket, "Key": key}
        self._upload_id = ""

    async def put(self) -> None:
        await self._client.put_object(**self._location, Body=b"probe")

    async def put_tags(self) -> None:
        tags: Any = {"TagSet": [{"Key": "probe", "Value": "probe"}]}
        await self._client.put_object_tagging(**self._location, Tagging=tags)

    async def get_tags(self) -> None:
        await read_tags(self._client.get_object_tagging(**self._location))

    async def get(self) -> None:
        async with (await self._client.get_object(**self._location))["Body"] as body:
            await body.read()

    async def create_upload(self) -> None:
        created = await self._client.create_multipart_upload(**self._location)
        self._upload_id = created["UploadId"]

    async def list_uploads(self) -> None:
        await self._client.list_multipart_uploads(
            Bucket=self._location["Bucket"], Prefix=self._location["Key"]
        )

    async def abort_upload(self) -> None:
        await self._client.abort_multipart_upload(**self._location, UploadId=self._upload_id)

    async def delete(self) -> None:
        await self._client.delete_object(**self._location)

    async def head_missing(self) -> None:
        """Without s3:ListBucket, S3 answers 403 for an object that does not exist."""
        try:
            await self._client.head_object(**self._location)
        except ClientError as error:
            if error_status(error) != HTTPStatus.NOT_FOUND:
                raise


_ATTEMPTS = (
    ("s3:PutObject", _Probe.put, None),
    ("s3:PutObjectTagging", _Probe.put_tags, _Probe.put),
    ("s3:GetObjectTagging", _Probe.get_tags, _Probe.put),
    ("s3:GetObject", _Probe.get, _Probe.put),
    ("s3:PutObject (multipart)", _Probe.create_upload, None),
    ("s3:ListBucketMultipartUploads", _Probe.list_uploads, None),
    ("s3:AbortMultipartUpload", _Probe.abort_upload, _Probe.create_upload),
    ("s3:DeleteObject", _Probe.delete, None),
    ("s3:ListBucket", _Probe.head_missing, _Probe.delete),
)
"""IAM actions, how each one is tried, and which attempt must have succeeded before."""


async def check_permissions(
    client: S3Client, bucket: str, key: str, records: Records
) -> AsyncIterator[Finding]:
    probe, succeeded = _Probe(client, bucket, key), set[object]()
    for action, attempt, prerequisite in _ATTEMPTS:
        if records == "metadata" and action.endswith("Tagging"):
            continue
        if prerequisite is not None and prerequisite not in succeeded:
            continue
        try:
            await attempt(probe)
        except ClientError as error:
            remedy = f"allow it on {bucket} in the credentials' policies and in the bucket's"
            if attempt in {_Probe.delete, _Probe.abort_upload}:
                remedy += f"; the lifecycle removes the probe {key}"
            if error_status(error) in REFUSALS and action.endswith("Tagging"):
                remedy = NOT_KEPT["tags"].partition(": ")[2]
                yield Finding(action, f"not offered by this store ({error_code(error)})", remedy)
            else:
                yield failure(action, error, remedy)
        except NO_RESPONSE as error:
            yield failure(action, error, "")
        else:
            succeeded.add(attempt)
            yield Finding(action, "allowed")
