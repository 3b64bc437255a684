"""The time to the first byte of a 100 MiB bundle with a receipt, against that of bare S3 calls.

Both from this process, by turns, so that drift hits both: GetObjectTagging, then GetObject up to
its first byte, with aioboto3; and GET /files/{id}, with the aiohttp that is below it, from a
service that runs as a process of its own.
The store is moto, or that of AWS_ENDPOINT_URL_S3.
"""

import asyncio
import statistics
import time
from contextlib import nullcontext
from uuid import uuid4

import aiohttp

from service.client import connect
from tests import stores
from tests.clients import sign
from tests.conftest import FROM_ENVIRONMENT, aws_environment
from tests.test_cli import serving

SIZE = 100 << 20
ROUNDS = 60


async def measure(url: str, bucket: str) -> tuple[list[float], list[float]]:
    """Seconds to the first byte: direct, and through the service."""
    bundle = bytes(SIZE)
    proof = sign("the key of a bench", bundle)
    direct, through = [], []
    async with (
        connect() as s3,
        aiohttp.ClientSession(url) as http,
    ):
        async with http.post("/upload", data=bundle, headers=proof) as answer:
            bundle_id = await answer.text()
        where = {"Bucket": bucket, "Key": f"bundles/{bundle_id}"}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await s3.get_object_tagging(Bucket=where["Bucket"], Key=where["Key"])
            got = await s3.get_object(Bucket=where["Bucket"], Key=where["Key"])
            await got["Body"].read(1)
            direct.append(time.perf_counter() - began)
            got["Body"].close()
            began = time.perf_counter()
            stream = await http.get(f"/files/{bundle_id}", headers=proof)
            await stream.content.read(1)
            through.append(time.perf_counter() - began)
            stream.close()
    return direct, through


def main() -> None:
    """Print the medians and their ratio."""
    chosen = nullcontext(FROM_ENVIRONMENT) if FROM_ENVIRONMENT else stores.moto()
    with chosen as store, aws_environment(store) as variables:
        bucket = f"bench-{uuid4()}"

        async def prepare() -> None:
            async with connect() as s3:
                await s3.create_bucket(Bucket=bucket)

        asyncio.run(prepare())
        with serving(HISTORY_BUCKET=bucket, **variables) as (url, _, _):
            direct, through = asyncio.run(measure(url, bucket))
    medians = [statistics.median(times) * 1000 for times in (direct, through)]
    print(f"first byte of 100 MiB: direct {medians[0]:.1f} ms, through the service", end=" ")
    print(f"{medians[1]:.1f} ms: {medians[1] / medians[0]:.2f} x")


if __name__ == "__main__":
    main()
