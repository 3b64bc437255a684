"""Bundles as S3 objects: the client, the calls, and the one place where botocore's errors end.

A bundle is the object `{prefix}{uuid}` with its record as object tags. The IAM actions it takes:
s3:PutObject (also multipart), s3:PutObjectTagging, s3:GetObject, s3:GetObjectTagging,
s3:DeleteObject, s3:AbortMultipartUpload, and on the bucket s3:ListBucketMultipartUploads and
s3:ListBucket (without which S3 answers 403 for an object that is not there).
Nothing is used that AWS, LocalStack, Ceph RGW, MinIO and moto do not all do.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from service.errors import NotFound, SettingsError, StorageUnavailable
from service.ranges import Stat

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import (
        GetObjectOutputTypeDef,
        GetObjectRequestTypeDef,
        HeadObjectOutputTypeDef,
    )

_log = logging.getLogger(__name__)

READ_SIZE = 64 * 1024
"""Bytes that are asked of S3's stream at a time."""

WRITE_SIZE = 256 * 1024
"""Bytes of a part that are given to its connection at a time."""

_ABSENT = {"NoSuchKey", "NotFound", "404", "PreconditionFailed", "412"}
"""What S3 says where there is no such object, or none with the ETag of If-Match."""

_ABORT_ROUNDS = 5

_CONFIG = AioConfig(
    connect_timeout=5,
    read_timeout=30,
    retries={"mode": "standard", "total_max_attempts": 3},
    # Ceph answers 400 to checksum trailers.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


@asynccontextmanager
async def connect(region: str | None = None, *, connections: int = 10) -> AsyncIterator[S3Client]:
    """Open the S3 client of a process; all but `region` is botocore's own configuration.

    `connections` are pooled at most. The pool must never be a queue: a transfer may hold two.
    Raises `SettingsError` where botocore's configuration is none.
    """
    config = _CONFIG.merge(AioConfig(max_pool_connections=connections))
    async with AsyncExitStack() as stack:
        try:
            session = aioboto3.Session(region_name=region)
            client = await stack.enter_async_context(session.client("s3", config=config))
        except (BotoCoreError, ValueError) as error:
            raise SettingsError([f"AWS's settings: {error}"]) from error
        # A round trip before every body, which not every store answers.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        yield client


@contextmanager
def _translated(operation: str, *, may_be_absent: bool = False) -> Iterator[None]:
    """Turn what botocore and aiohttp raise into this service's errors.

    An absent object is `NotFound` only to those who look for one. Of an error only its kind is
    logged: its text may hold the URL, and that a bundle's id.
    """
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if may_be_absent and code in _ABSENT:
            raise NotFound from error
        _log.warning("S3 refused %s: %s", operation, code)
        raise StorageUnavailable from error
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as error:
        _log.warning("S3 failed at %s: %s", operation, type(error).__name__)
        raise StorageUnavailable from error


class S3Storage:
    """`bundles.Storage` in one bucket."""

    def __init__(self, client: S3Client, *, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def _key(self, bundle_id: UUID) -> str:
        return f"{self._prefix}{bundle_id}"

    async def put(self, bundle_id: UUID, body: memoryview, tags: Mapping[str, str]) -> None:
        """PutObject, with its tags."""
        with _translated("PutObject"):
            await self._client.put_object(
                Bucket=self._bucket,
                Key=self._key(bundle_id),
                Body=_Part(body),  # type: ignore[arg-type]
                ContentType="application/octet-stream",
                Tagging=urlencode(tags),
            )

    async def create_upload(self, bundle_id: UUID) -> str:
        """CreateMultipartUpload; the UploadId.

        Where it was retried, an answer was lost, and perhaps with it an upload that was made.
        """
        with _translated("CreateMultipartUpload"):
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
        with _translated("UploadPart"):
            part = await self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key(bundle_id),
                UploadId=upload,
                PartNumber=number,
                Body=_Part(body),  # type: ignore[arg-type]
            )
        return part["ETag"]

    async def complete_upload(self, bundle_id: UUID, upload: str, etags: list[str]) -> None:
        """CompleteMultipartUpload.

        A retry after a lost answer is told NoSuchUpload, the upload being an object by then: so
        HeadObject decides.
        """
        with _translated("CompleteMultipartUpload"):
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
            with _translated("AbortMultipartUpload"):
                listing = await self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=self._key(bundle_id)
                )
                uploads = {found["UploadId"] for found in listing.get("Uploads", [])} - {but}
                if not uploads:
                    return
                for upload in uploads:
                    try:
                        await self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=self._key(bundle_id), UploadId=upload
                        )
                    except self._client.exceptions.NoSuchUpload:
                        continue
        raise StorageUnavailable

    async def put_tags(self, bundle_id: UUID, tags: Mapping[str, str]) -> None:
        """PutObjectTagging: the whole set."""
        with _translated("PutObjectTagging"):
            await self._client.put_object_tagging(
                Bucket=self._bucket,
                Key=self._key(bundle_id),
                Tagging={"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]},
            )

    async def get_tags(self, bundle_id: UUID) -> dict[str, str]:
        """GetObjectTagging."""
        with _translated("GetObjectTagging", may_be_absent=True):
            tagging = await self._client.get_object_tagging(
                Bucket=self._bucket, Key=self._key(bundle_id)
            )
        return {tag["Key"]: tag["Value"] for tag in tagging["TagSet"]}

    async def head(self, bundle_id: UUID) -> Stat:
        """HeadObject."""
        with _translated("HeadObject", may_be_absent=True):
            head = await self._client.head_object(Bucket=self._bucket, Key=self._key(bundle_id))
        return _stat(head)

    async def open(
        self, bundle_id: UUID, *, etag: str | None = None, part: range | None = None
    ) -> StoredObject:
        """GetObject, with If-Match where an ETag is given and Range where a part is wanted."""
        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": self._key(bundle_id)}
        if etag is not None:
            request["IfMatch"] = etag
        if part is not None:
            request["Range"] = f"bytes={part.start}-{part.stop - 1}"
        with _translated("GetObject", may_be_absent=True):
            got = await self._client.get_object(**request)
        return StoredObject(got)

    async def delete(self, bundle_id: UUID) -> None:
        """DeleteObject; no error where there is none."""
        with _translated("DeleteObject"):
            await self._client.delete_object(Bucket=self._bucket, Key=self._key(bundle_id))


class StoredObject:
    """GetObject's answer: `stat`, and the body as an iterator that its opener closes.

    Iterating raises `StorageUnavailable` where the body breaks off, also if it ends cleanly but
    too early.
    """

    def __init__(self, got: GetObjectOutputTypeDef) -> None:
        self.stat = _stat(got)
        self._body = got["Body"]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated("GetObject"):
            while chunk := await self._body.read(READ_SIZE):
                yield chunk

    async def aclose(self) -> None:
        """Give the connection back, or drop it where the body was not read to its end."""
        self._body.close()


def _stat(answer: GetObjectOutputTypeDef | HeadObjectOutputTypeDef) -> Stat:
    """Of the whole object, also where the answer is of a part of it."""
    whole = answer.get("ContentRange", "").rpartition("/")[2]
    size = int(whole) if whole else answer["ContentLength"]
    return Stat(size, answer["ETag"], answer["LastModified"].timestamp())


class _Part:
    """A part as the seekable file that botocore signs and sends again after a failure.

    Iterated, it gives aiohttp slices of the buffer: given `bytes`, aiohttp would copy the part.
    """

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    def read(self, size: int = -1) -> memoryview:
        start, self._at = self._at, len(self._body) if size < 0 else self._at + size
        return self._body[start : self._at]

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._body))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._body), WRITE_SIZE):
            yield self._body[start : start + WRITE_SIZE]
