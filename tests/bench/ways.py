"""The ways to a store: straight to it, and through the service. The same client goes all of them.

The calls that the service makes are made without it, too: by the client itself, and by the client
through a relay that only passes bytes on, which is the least that anything in between can cost.
"""

import time
from collections.abc import AsyncIterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol
from uuid import uuid4

import aiohttp

from service.s3.bodies import PartBody
from tests.support.clients.signing import sign

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PART = 8 * MIB
"""The service's part size: larger bundles are multipart uploads, and read twice."""

CHUNK = 64 * 1024
"""Bytes of a download that a client takes at a time."""

KEY = "the key of a benchmark"
PREFIX = "bundles/"

BOUNDARY = "a-boundary-of-a-form"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="bundle"\r\n\r\n',
    f"\r\n--{BOUNDARY}--\r\n",
)

Kind = Literal["upload", "upload form", "upload with key", "first download", "download", "range"]


@dataclass(frozen=True)
class Bundle:
    """What is sent, or has been stored under its `ids`."""

    content: bytes
    ids: Sequence[str] = ()

    @cached_property
    def proof(self) -> dict[str, str]:
        return sign(KEY, self.content)

    @cached_property
    def form(self) -> bytes:
        return self.content.join(part.encode() for part in FORM)

    @property
    def quarter(self) -> range:
        """The range that is asked for."""
        return range(len(self.content) // 4, len(self.content) // 2)


@dataclass(frozen=True)
class Timing:
    """Seconds to the first byte of an answer's body, and to its last."""

    first_byte: float
    whole: float


class Way(Protocol):
    """Transfers of one kind, told apart by their number; `made` are the keys of new objects."""

    made: list[str]

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing: ...


class Direct:
    """One PutObject or GetObject each; and what a benchmark asks of the store beside them."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self.made: list[str] = []
        self._s3 = s3
        self._bucket = bucket

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing:
        began = time.perf_counter()
        if kind.startswith("upload"):
            await self._s3.put_object(**self._new(), Body=_body(bundle.content))
            return _timing(began)
        return await self._get(kind, bundle, number, began)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._s3.delete_object(**self._object(key))

    async def forget_receipts(self, ids: Sequence[str]) -> None:
        """Make the next download of each of these bundles its first one."""
        for bundle_id in ids:
            where = self._object(PREFIX + bundle_id)
            tags = (await self._s3.get_object_tagging(**where))["TagSet"]
            kept = [tag for tag in tags if tag["Key"] != "receipt"]
            await self._s3.put_object_tagging(**where, Tagging={"TagSet": kept})

    async def _get(self, kind: Kind, bundle: Bundle, number: int, began: float) -> Timing:
        part = bundle.quarter
        asked = {"Range": f"bytes={part.start}-{part.stop - 1}"} if kind == "range" else {}
        where = self._object(PREFIX + bundle.ids[number])
        got = await self._s3.get_object(**where, **asked)
        with closing(got["Body"]) as body:
            size = len(part) if kind == "range" else len(bundle.content)
            return await _read(body.iter_chunks(CHUNK), size, began)

    def _new(self) -> dict[str, str]:
        self.made.append(f"direct/{uuid4()}")
        return self._object(self.made[-1])

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": key}


class SameCalls(Direct):
    """The calls that the service makes for a transfer, one after the other."""

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing:
        began = time.perf_counter()
        large = len(bundle.content) > PART
        if kind.startswith("upload"):
            if not large:
                return await super().transfer(kind, bundle, number)
            await self._multipart(self._new(), bundle)
            return _timing(began)
        where = self._object(PREFIX + bundle.ids[number])
        tags = await self._s3.get_object_tagging(**where)
        if kind == "range":
            await self._s3.head_object(**where)
        timing = await self._get(kind, bundle, number, began)
        if kind != "first download":
            return timing
        if large:
            timing = await self._get(kind, bundle, number, began)
        await self._s3.put_object_tagging(**where, Tagging={"TagSet": tags["TagSet"]})
        return Timing(timing.first_byte, time.perf_counter() - began)

    async def _multipart(self, where: dict[str, str], bundle: Bundle) -> None:
        upload = {"UploadId": (await self._s3.create_multipart_upload(**where))["UploadId"]}
        parts = []
        for number, start in enumerate(range(0, len(bundle.content), PART), start=1):
            piece = memoryview(bundle.content)[start : start + PART]
            sent = await self._s3.upload_part(
                **where, **upload, PartNumber=number, Body=_body(piece)
            )
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        made = {"Parts": parts}
        await self._s3.complete_multipart_upload(**where, **upload, MultipartUpload=made)
        tags = [{"Key": name, "Value": "0" * 64} for name in ("sha256", "hmac-sha256", "receipt")]
        await self._s3.put_object_tagging(**where, Tagging={"TagSet": tags})


class Through:
    """The service, with the aiohttp that is below aioboto3."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.made: list[str] = []

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing:
        began = time.perf_counter()
        if kind.startswith("upload"):
            await self.upload(kind, bundle)
            return _timing(began)
        part, headers = bundle.quarter, dict(bundle.proof)
        if kind == "range":
            headers["Range"] = f"bytes={part.start}-{part.stop - 1}"
        async with self._http.get(f"/files/{bundle.ids[number]}", headers=headers) as answer:
            answer.raise_for_status()
            size = len(part) if kind == "range" else len(bundle.content)
            return await _read(answer.content.iter_chunked(CHUNK), size, began)

    async def upload(self, kind: Kind, bundle: Bundle) -> str:
        """With its HMAC where it is to be downloaded; the id."""
        headers, body = {"Content-Type": "application/octet-stream"}, bundle.content
        if kind == "upload with key":
            headers |= bundle.proof
        elif kind == "first download":
            headers["X-HMAC"] = bundle.proof["X-HMAC"]
        elif kind == "upload form":
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
            body = bundle.form
        headers["Content-Length"] = str(len(body))
        async with self._http.post("/upload", data=_pieces(body), headers=headers) as answer:
            answer.raise_for_status()
            bundle_id = await answer.text()
        self.made.append(PREFIX + bundle_id)
        return bundle_id


def _body(content: bytes | memoryview) -> Any:
    return PartBody(memoryview(content))


def _pieces(content: bytes) -> AsyncIterable[memoryview]:
    return aiter(PartBody(memoryview(content)))


def _timing(began: float) -> Timing:
    seconds = time.perf_counter() - began
    return Timing(seconds, seconds)


async def _read(chunks: AsyncIterable[bytes], size: int, began: float) -> Timing:
    first = None
    async for chunk in chunks:
        first = first or time.perf_counter() - began
        size -= len(chunk)
    assert size == 0, "the answer is not whole"
    return Timing(first or 0, time.perf_counter() - began)
