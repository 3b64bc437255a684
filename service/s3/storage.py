"""Bundles as S3 objects.

A bundle is the object `{prefix}{uuid}`. Its record is in the object's tags, or in its metadata for
stores without tags (HISTORY_RECORDS). This needs the IAM actions s3:PutObject (also for multipart
uploads), s3:GetObject, s3:DeleteObject, s3:AbortMultipartUpload, for tags also
s3:PutObjectTagging and s3:GetObjectTagging, and on the bucket s3:ListBucketMultipartUploads and
s3:ListBucket. Without s3:ListBucket, S3 answers 403 instead of 404 for an object that does not
exist. `docs/stores.md` lists the stores that offer all this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from service.bundles.ranges import ObjectStat
from service.bundles.upload import Body
from service.errors import NotFound, StorageUnavailable
from service.s3.bodies import ObjectBody, RequestBody, body_range, has_complete_head, object_stat
from service.s3.calls import IncompleteHead, S3Calls
from service.s3.capabilities import RecordProbe
from service.s3.records import Records, read_tags, record_arguments, tag_set

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef, GetObjectRequestTypeDef

READINESS_TIMEOUT = 2.0
"""Seconds that the readiness check may take, with HeadBucket or with the first probe of records."""

_ABORT_ATTEMPTS = 5


class S3Storage:
    """Implements `bundles.access.Storage` in one bucket."""

    def __init__(
        self,
        client: S3Client,
        calls: S3Calls,
        *,
        bucket: str,
        prefix: str,
        records: Records,
    ) -> None:
        self.records_in_tags = records == "tags"
        self._client = client
        self._calls = calls
        self._bucket = bucket
        self._prefix = prefix
        self._records = records
        self._probe = RecordProbe(client, calls, bucket=bucket, prefix=prefix, records=records)

    async def close(self) -> None:
        """Remove what a running probe has stored. The client is still open."""
        await self._probe.close()

    async def probe(self) -> None:
        """HeadBucket, or at the start `require_records`.

        Raises `StorageUnavailable` if the bucket cannot be used, after at most `READINESS_TIMEOUT`.
        """
        if not self._probe.kept:
            await self._probe.require(limit=READINESS_TIMEOUT)
            return
        async with self._calls.call("HeadBucket", limit=READINESS_TIMEOUT):
            await self._client.head_bucket(Bucket=self._bucket)

    def _key(self, bundle_id: UUID) -> str:
        return f"{self._prefix}{bundle_id}"

    async def require_records(self) -> None:
        """Raise `StorageUnavailable` unless a probe has shown that this store keeps records."""
        await self._probe.require()

    async def put(self, bundle_id: UUID, body: Body, fields: Mapping[str, str]) -> None:
        """PutObject with the record.

        The body may arrive as slowly as its client sends it. So the timeout of this call starts
        when all of the body has arrived. Until then, there are timeouts for the client, and for
        each time that S3 has to accept a chunk.
        """
        with closing(RequestBody(body)) as request_body:
            async with self._calls.call("PutObject", limit=math.inf) as start_timeout:
                body.on_arrival(start_timeout)
                await self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._key(bundle_id),
                    Body=request_body,  # type: ignore[arg-type]
                    ContentType="application/octet-stream",
                    ContentLength=body.size,
                    **record_arguments(fields, self._records),
                )

    async def create_upload(self, bundle_id: UUID, fields: Mapping[str, str]) -> str:
        """CreateMultipartUpload; returns the UploadId.

        Metadata can only be given here. Tags are added after CompleteMultipartUpload, because some
        stores drop those given here.

        If the request was retried, the first one may have created an upload whose response was
        lost. All other uploads of this bundle are aborted then.
        """
        async with self._calls.call("CreateMultipartUpload"):
            created = await self._client.create_multipart_upload(
                Bucket=self._bucket,
                Key=self._key(bundle_id),
                ContentType="application/octet-stream",
                **({} if self.records_in_tags else record_arguments(fields, self._records)),
            )
        upload_id = created["UploadId"]
        if created["ResponseMetadata"]["RetryAttempts"]:
            await self.abort_uploads(bundle_id, keep=upload_id)
        return upload_id

    async def upload_part(self, bundle_id: UUID, upload_id: str, number: int, body: Body) -> str:
        """UploadPart; returns the part's ETag. The first part has the number 1."""
        with closing(RequestBody(body)) as request_body:
            async with self._calls.call("UploadPart", size=body.size):
                sent = await self._client.upload_part(
                    Bucket=self._bucket,
                    Key=self._key(bundle_id),
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=request_body,  # type: ignore[arg-type]
                )
        return sent["ETag"]

    async def complete_upload(
        self, bundle_id: UUID, upload_id: str, etags: list[str], fields: Mapping[str, str]
    ) -> None:
        """CompleteMultipartUpload, then PutObjectTagging if records are tags."""
        await self._complete(bundle_id, upload_id, etags)
        if self.records_in_tags:
            await self.put_tags(bundle_id, fields, may_be_absent=False)

    async def _complete(self, bundle_id: UUID, upload_id: str, etags: list[str]) -> None:
        """CompleteMultipartUpload.

        If the response was lost, S3 answers the retry with NoSuchUpload, because the upload has
        become an object. HeadObject then tells whether the object exists.
        """
        async with self._calls.call("CompleteMultipartUpload"):
            try:
                await self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=self._key(bundle_id),
                    UploadId=upload_id,
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

    async def abort_uploads(self, bundle_id: UUID, *, keep: str | None = None) -> None:
        """Abort the multipart uploads of this bundle except `keep`, until S3 lists none.

        There can be several, because a CreateMultipartUpload whose response was lost is retried. An
        abort may have to be repeated, because S3 can still accept a part that was on its way.
        """
        for _ in range(_ABORT_ATTEMPTS):
            async with self._calls.call("ListMultipartUploads"):
                listing = await self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=self._key(bundle_id)
                )
            upload_ids = {upload["UploadId"] for upload in listing.get("Uploads", [])} - {keep}
            if not upload_ids:
                return
            for upload_id in upload_ids:
                async with self._calls.call("AbortMultipartUpload"):
                    with suppress(self._client.exceptions.NoSuchUpload):
                        await self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=self._key(bundle_id), UploadId=upload_id
                        )
        raise StorageUnavailable

    async def put_tags(
        self, bundle_id: UUID, fields: Mapping[str, str], *, may_be_absent: bool = True
    ) -> None:
        """PutObjectTagging: replaces all tags. The object may be deleted at the same time."""
        async with self._calls.call("PutObjectTagging", may_be_absent=may_be_absent):
            await self._client.put_object_tagging(
                Bucket=self._bucket, Key=self._key(bundle_id), Tagging=tag_set(fields)
            )

    async def get_tags(self, bundle_id: UUID) -> dict[str, str]:
        """GetObjectTagging."""
        async with self._calls.call("GetObjectTagging", may_be_absent=True):
            return await read_tags(
                self._client.get_object_tagging(Bucket=self._bucket, Key=self._key(bundle_id))
            )

    async def head(self, bundle_id: UUID) -> ObjectStat:
        """HeadObject."""
        async with self._calls.call("HeadObject", may_be_absent=True):
            head = await self._client.head_object(Bucket=self._bucket, Key=self._key(bundle_id))
            if not has_complete_head(head):
                raise IncompleteHead
        return object_stat(head)

    async def open(
        self, bundle_id: UUID, *, etag: str | None = None, part: range | None = None
    ) -> ObjectBody:
        """GetObject, with If-Match if an ETag is given, and with Range if a part is given."""
        response = await self._get(bundle_id, part, etag=etag)
        return ObjectBody(
            response, self._calls, partial(self._get, bundle_id, etag=response["ETag"])
        )

    async def _get(
        self, bundle_id: UUID, part: range | None, *, etag: str | None
    ) -> GetObjectOutputTypeDef:
        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": self._key(bundle_id)}
        if etag is not None:
            request["IfMatch"] = etag
        if part is not None:
            request["Range"] = f"bytes={part.start}-{part.stop - 1}"
        async with self._calls.call("GetObject", may_be_absent=True):
            response = await self._client.get_object(**request)
            if not has_complete_head(response):
                response["Body"].close()
                raise IncompleteHead
        if body_range(response) != (range(object_stat(response).size) if part is None else part):
            response["Body"].close()
            raise StorageUnavailable
        return response

    async def delete(self, bundle_id: UUID) -> None:
        """DeleteObject. Not an error if the object does not exist."""
        async with self._calls.call("DeleteObject"):
            await self._client.delete_object(Bucket=self._bucket, Key=self._key(bundle_id))
