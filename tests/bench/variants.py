"""The four variants of a transfer that the benchmark compares. All run in the same client process.

Beside a single direct call and the service itself, the client makes the same S3 calls as the
service does, once directly and once through a relay that only passes bytes on. The relay shows the
least that any process between a client and S3 can cost.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import cached_property
from io import UnsupportedOperation
from typing import Any, Literal, Protocol
from urllib.parse import urlencode
from uuid import uuid4

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore.handlers import add_expect_header

from service.s3.client import CLIENT_CONFIG
from tests.support.clients.signing import sign

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PART_SIZE = 8 * MIB
"""The service's part size. Larger bundles of unknown length are multipart uploads."""

CHUNK_SIZE = 64 * 1024
"""How many bytes of a transfer a client reads or writes at once."""

MAX_CONNECTIONS = 200
"""How many connections to the store a client opens at most."""

KEY = "the key of a benchmark"
PREFIX = "bundles/"

BOUNDARY = "a-boundary-of-a-form"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="bundle"\r\n\r\n',
    f"\r\n--{BOUNDARY}--\r\n",
)

TAGS = {"expires-at": "1" * 10, "size": "1" * 7, "hmac-sha256": "0" * 64}
"""Tags like those of a bundle."""

Kind = Literal[
    "upload",
    "upload chunked",
    "upload form",
    "upload with key",
    "first download",
    "download",
    "range",
]


@dataclass(frozen=True)
class Bundle:
    """The content of an upload, or of the stored bundles that have these `ids`."""

    content: bytes
    ids: Sequence[str] = ()

    @cached_property
    def proof(self) -> dict[str, str]:
        return sign(KEY, self.content)

    @cached_property
    def form(self) -> bytes:
        return self.content.join(part.encode() for part in FORM)

    @property
    def second_quarter(self) -> range:
        """The range that a range request downloads."""
        return range(len(self.content) // 4, len(self.content) // 2)

    def download_size(self, kind: Kind) -> int:
        return len(self.second_quarter) if kind == "range" else len(self.content)

    def range_header(self, kind: Kind) -> dict[str, str]:
        if kind != "range":
            return {}
        return {"Range": f"bytes={self.second_quarter.start}-{self.second_quarter.stop - 1}"}


@dataclass(frozen=True)
class Timing:
    """Seconds until the first byte of a response's body, and until its last."""

    first_byte: float
    total: float


class Variant(Protocol):
    """Makes transfers, and collects the keys of the objects that it has created."""

    created_keys: list[str]

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing:
        """Upload the bundle, or download the one with the id of that number."""
        ...

    async def settle(self) -> None:
        """Wait for calls that were still running when their transfers had ended."""
        ...


class SingleCall:
    """One PutObject or GetObject for each transfer, directly with the store.

    Also prepares and cleans up objects in the store for the benchmark.
    """

    def __init__(self, s3: Any, bucket: str) -> None:
        self.created_keys: list[str] = []
        self._s3 = s3
        self._bucket = bucket

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing:
        started = time.perf_counter()
        if kind.startswith("upload"):
            await self._s3.put_object(**self._new_object(), Body=ContentBody(bundle.content))
            return _timing_without_body(started)
        return await self._get(kind, bundle, number, started)

    async def settle(self) -> None:
        """All calls have ended with their transfers."""

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._s3.delete_object(**self._object(key))

    async def delete_receipts(self, ids: Sequence[str]) -> None:
        """Make the next download of each of these bundles a first download again."""
        for bundle_id in ids:
            location = self._object(PREFIX + bundle_id)
            tags = (await self._s3.get_object_tagging(**location))["TagSet"]
            other_tags = [tag for tag in tags if tag["Key"] != "receipt"]
            await self._s3.put_object_tagging(**location, Tagging={"TagSet": other_tags})

    async def _get(self, kind: Kind, bundle: Bundle, number: int, started: float) -> Timing:
        location = self._object(PREFIX + bundle.ids[number])
        response = await self._s3.get_object(**location, **bundle.range_header(kind))
        with closing(response["Body"]) as body:
            chunks = body.iter_chunks(CHUNK_SIZE)
            return await _read(chunks, bundle.download_size(kind), started)

    def _new_object(self) -> dict[str, str]:
        self.created_keys.append(f"direct/{uuid4()}")
        return self._object(self.created_keys[-1])

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": key}


class SameCalls(SingleCall):
    """The same S3 calls as the service makes for a transfer, and as many of them at a time."""

    def __init__(self, s3: Any, bucket: str) -> None:
        super().__init__(s3, bucket)
        self._unfinished: list[asyncio.Task[Any]] = []

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing:
        started = time.perf_counter()
        if kind.startswith("upload"):
            await self._upload(kind, bundle)
            return _timing_without_body(started)
        location = self._object(PREFIX + bundle.ids[number])
        tagging = self._s3.get_object_tagging(**location)
        if kind == "range":
            await asyncio.gather(tagging, self._s3.head_object(**location))
            return await self._get(kind, bundle, number, started)
        tags, timing = await asyncio.gather(tagging, self._get(kind, bundle, number, started))
        if kind == "first download":
            receipt = {"TagSet": tags["TagSet"]}
            self._start(self._s3.put_object_tagging(**location, Tagging=receipt))
        return timing

    async def settle(self) -> None:
        await asyncio.gather(*self._unfinished)
        self._unfinished.clear()

    def _start(self, call: Coroutine[Any, Any, Any]) -> None:
        """Make a call in the background, as the service does to store a receipt."""
        self._unfinished.append(asyncio.ensure_future(call))

    async def _upload(self, kind: Kind, bundle: Bundle) -> None:
        location = self._new_object()
        if len(bundle.content) <= PART_SIZE or kind not in {"upload chunked", "upload form"}:
            body = ContentBody(bundle.content)
            await self._s3.put_object(**location, Body=body, Tagging=urlencode(TAGS))
        else:
            await self._multipart_upload(location, bundle)

    async def _multipart_upload(self, location: dict[str, str], bundle: Bundle) -> None:
        response = await self._s3.create_multipart_upload(**location)
        upload = {"UploadId": response["UploadId"]}
        parts = []
        for number, start in enumerate(range(0, len(bundle.content), PART_SIZE), start=1):
            content = memoryview(bundle.content)[start : start + PART_SIZE]
            response = await self._s3.upload_part(
                **location, **upload, PartNumber=number, Body=ContentBody(content)
            )
            parts.append({"PartNumber": number, "ETag": response["ETag"]})
        await self._s3.complete_multipart_upload(
            **location, **upload, MultipartUpload={"Parts": parts}
        )
        tags = [{"Key": name, "Value": value} for name, value in TAGS.items()]
        await self._s3.put_object_tagging(**location, Tagging={"TagSet": tags})


class ThroughService:
    """Transfers through the service, with aiohttp, which aioboto3 uses too."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.created_keys: list[str] = []

    async def settle(self) -> None:
        """`Benchmark` waits for the service's background work."""

    async def transfer(self, kind: Kind, bundle: Bundle, number: int) -> Timing:
        started = time.perf_counter()
        if kind.startswith("upload"):
            await self.upload(kind, bundle)
            return _timing_without_body(started)
        headers = bundle.proof | bundle.range_header(kind)
        async with self._http.get(f"/files/{bundle.ids[number]}", headers=headers) as response:
            response.raise_for_status()
            chunks = response.content.iter_chunked(CHUNK_SIZE)
            return await _read(chunks, bundle.download_size(kind), started)

    async def upload(self, kind: Kind, bundle: Bundle) -> str:
        """Upload a bundle and return its id. An upload for a first download sends the HMAC only."""
        headers, body = {"Content-Type": "application/octet-stream"}, bundle.content
        if kind == "upload with key":
            headers |= bundle.proof
        elif kind == "first download":
            headers["X-HMAC"] = bundle.proof["X-HMAC"]
        elif kind == "upload form":
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
            body = bundle.form
        if kind != "upload chunked":
            headers["Content-Length"] = str(len(body))
        data = aiter(ContentBody(body))
        async with self._http.post("/upload", data=data, headers=headers) as response:
            response.raise_for_status()
            bundle_id = await response.text()
        self.created_keys.append(PREFIX + bundle_id)
        return bundle_id


class ContentBody:
    """A request body in memory, sent in chunks without copying them. aiohttp would copy `bytes`."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)

    def __len__(self) -> int:
        return len(self._content)

    def read(self, _: int = -1) -> bytes:
        raise UnsupportedOperation("a request body is iterated, not read")

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        assert (offset, whence) == (0, 0)
        return 0

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._content), CHUNK_SIZE):
            yield self._content[start : start + CHUNK_SIZE]


@asynccontextmanager
async def plain_s3_client(url: str | None = None) -> AsyncIterator[Any]:
    """Open a client of aioboto3 itself, with the service's settings but none of its code."""
    config = AioConfig(**CLIENT_CONFIG, max_pool_connections=MAX_CONNECTIONS)
    async with aioboto3.Session().client("s3", config=config, endpoint_url=url) as client:
        client.meta.events.unregister("before-call.s3", add_expect_header)
        yield client


def _timing_without_body(started: float) -> Timing:
    seconds = time.perf_counter() - started
    return Timing(seconds, seconds)


async def _read(chunks: AsyncIterable[bytes], size: int, started: float) -> Timing:
    first_byte = None
    async for chunk in chunks:
        first_byte = first_byte or time.perf_counter() - started
        size -= len(chunk)
    assert size == 0, "the response is incomplete"
    return Timing(first_byte or 0, time.perf_counter() - started)
