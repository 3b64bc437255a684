"""Bundles as S3 objects.

A bundle is the object `{prefix}{uuid}` with its record as object tags. The IAM actions it takes:
s3:PutObject (also multipart), s3:PutObjectTagging, s3:GetObject, s3:GetObjectTagging,
s3:DeleteObject, s3:AbortMultipartUpload, and on the bucket s3:ListBucketMultipartUploads and
s3:ListBucket (without which S3 answers 403 for an object that is not there).
Nothing is used that AWS, LocalStack, Ceph RGW, MinIO and moto do not all do.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

from service.bodies import Part, StoredObject, part_of, stat
from service.client import Calls
from service.errors import NotFound, StorageUnavailable
from service.ranges import Stat

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef, GetObjectRequestTypeDef

PROBE_TIMEOUT = 2.0
"""Seconds that the bucket has to show that it is there."""

_ABORT_ROUNDS = 5


class S3Storage:
    """`bundles.Storage` in one bucket."""

    def __init__(self, client: S3Client, calls: Calls, *, bucket: str, prefix: str) -> None:
        self._client = client
        self._calls = calls
        self._bucket = bucket
        self._prefix = prefix

    async def probe(self) -> None:
        """HeadBucket. Raises `StorageUnavailable` where the bucket cannot be used."""
        async with self._calls.call("HeadBucket", limit=PROBE_TIMEOUT):
            await self._client.head_bucket(Bucket=self._bucket)

    def _key(self, bundle_id: UUID) -> str:
        return f"{self._prefix}{bundle_id}"

    async def put(self, bundle_id: UUID, body: memoryview, tags: Mapping[str, str]) -> None:
        """PutObject, with its tags."""
        with closing(Part(body)) as part:
            async with self._calls.call("PutObject", size=len(body)):
                await self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._key(bundle_id),
                    Body=part,  # type: ignore[arg-type]
                    ContentType="application/octet-stream",
                    Tagging=urlencode(tags),
                )

    async def create_upload(self, bundle_id: UUID) -> str:
        """CreateMultipartUpload; the UploadId.

        Where it was retried, an answer was lost, and perhaps with it an upload that was made.
        """
        async with self._calls.call("CreateMultipartUpload"):
            created = await self._client.create_multipart_upload(
                Bucket=self._bucket,
                Key=self._key(bundle_id),
                ContentType="application/octet-stream",
            )
        upload = created["UploadId"]
        if created["ResponseMetadata"]["RetryAttempts"]:
            await self.abort_uploads(bundle_id, but=upload)
        return upload

    async def upload_part(self, bundle_id: UUID, upload: str, number: int, body: memoryview) -> str:
        """UploadPart; the part's ETag. Parts count from 1."""
        with closing(Part(body)) as part:
            async with self._calls.call("UploadPart", size=len(body)):
                sent = await self._client.upload_part(
                    Bucket=self._bucket,
                    Key=self._key(bundle_id),
                    UploadId=upload,
                    PartNumber=number,
                    Body=part,  # type: ignore[arg-type]
                )
        return sent["ETag"]

    async def complete_upload(self, bundle_id: UUID, upload: str, etags: list[str]) -> None:
        """CompleteMultipartUpload.

        A retry after a lost answer is told NoSuchUpload, the upload being an object by then: so
        HeadObject decides.
        """
        async with self._calls.call("CompleteMultipartUpload"):
            try:
                await self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=self._key(bundle_id),
                    UploadId=upload,
                    MultipartUpload={
                        "Parts": [
                            {"PartNumber": number, "ETag": etag}
                            for number, etag in enumerate(etags, start=1)
                        ]
                    },
                )
                return
            except self._client.exceptions.NoSuchUpload as error:
                lost = error
        try:
            await self.head(bundle_id)
        except NotFound:
            raise StorageUnavailable from lost

    async def abort_uploads(self, bundle_id: UUID, *, but: str | None = None) -> None:
        """Abort every multipart upload of this bundle, or all `but` one, until S3 lists none.

        There can be more than one, as a CreateMultipartUpload whose answer was lost is retried; and
        S3 may accept a part that was on its way, so one round need not be enough.
        """
        for _ in range(_ABORT_ROUNDS):
            async with self._calls.call("ListMultipartUploads"):
                listing = await self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=self._key(bundle_id)
                )
            uploads = {found["UploadId"] for found in listing.get("Uploads", [])} - {but}
            if not uploads:
                return
            for upload in uploads:
                async with self._calls.call("AbortMultipartUpload"):
                    with suppress(self._client.exceptions.NoSuchUpload):
                        await self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=self._key(bundle_id), UploadId=upload
                        )
        raise StorageUnavailable

    async def put_tags(self, bundle_id: UUID, tags: Mapping[str, str]) -> None:
        """PutObjectTagging: the whole set."""
        async with self._calls.call("PutObjectTagging"):
            await self._client.put_object_tagging(
                Bucket=self._bucket,
                Key=self._key(bundle_id),
                Tagging={"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]},
            )

    async def get_tags(self, bundle_id: UUID) -> dict[str, str]:
        """GetObjectTagging."""
        async with self._calls.call("GetObjectTagging", may_be_absent=True):
            tagging = await self._client.get_object_tagging(
                Bucket=self._bucket, Key=self._key(bundle_id)
            )
        return {tag["Key"]: tag["Value"] for tag in tagging["TagSet"]}

    async def head(self, bundle_id: UUID) -> Stat:
        """HeadObject."""
        async with self._calls.call("HeadObject", may_be_absent=True):
            head = await self._client.head_object(Bucket=self._bucket, Key=self._key(bundle_id))
        return stat(head)

    async def open(
        self, bundle_id: UUID, *, etag: str | None = None, part: range | None = None
    ) -> StoredObject:
        """GetObject, with If-Match where an ETag is given and Range where a part is wanted."""
        got = await self._get(bundle_id, part, etag=etag)
        return StoredObject(got, self._calls, partial(self._get, bundle_id, etag=got["ETag"]))

    async def _get(
        self, bundle_id: UUID, part: range | None, *, etag: str | None
    ) -> GetObjectOutputTypeDef:
        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": self._key(bundle_id)}
        if etag is not None:
            request["IfMatch"] = etag
        if part is not None:
            request["Range"] = f"bytes={part.start}-{part.stop - 1}"
        async with self._calls.call("GetObject", may_be_absent=True):
            got = await self._client.get_object(**request)
        if part_of(got) != (range(stat(got).size) if part is None else part):
            got["Body"].close()
            raise StorageUnavailable
        return got

    async def delete(self, bundle_id: UUID) -> None:
        """DeleteObject; no error where there is none."""
        async with self._calls.call("DeleteObject"):
            await self._client.delete_object(Bucket=self._bucket, Key=self._key(bundle_id))
