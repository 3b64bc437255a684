"""`make bench`, or a part of it: `python -m tests.bench near --only 'upload.* 12 MiB'`."""

import asyncio
import json
import re
import statistics
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import aiohttp
import click
import uvloop
from tqdm import tqdm

from tests.bench import report
from tests.bench.processes import Service, running_relay, running_service, running_store
from tests.bench.variants import (
    KIB,
    MIB,
    Bundle,
    Kind,
    SameCalls,
    SingleCall,
    ThroughService,
    plain_s3_client,
)
from tests.bench.workloads import (
    Benchmark,
    Workload,
    prepare_bundle,
    run_batch,
    run_concurrently,
)
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

DELAY = 0.02
"""Seconds of delay on the way to a store that is as far away as S3."""

MAX_CONCURRENCY = 64

SIZES = (4 * KIB, 128 * KIB, 1 * MIB, 12 * MIB, 64 * MIB, 100 * MIB)
KINDS: tuple[Kind, ...] = get_args(Kind)
MAIN_KINDS: tuple[Kind, ...] = ("upload", "first download", "download")

NEAR = [
    Workload(kind, size, concurrency)
    for concurrency in (1, 16, MAX_CONCURRENCY)
    for kind in (KINDS if concurrency < MAX_CONCURRENCY else MAIN_KINDS)
    for size in SIZES
    if size * concurrency <= 192 * MIB
]
NEAR += [Workload(kind, 12 * MIB, 8) for kind in ("upload with key", "download")]
FAR = [
    *(Workload(kind, size, 1) for kind in (*MAIN_KINDS, "upload chunked") for size in SIZES),
    *(Workload(kind, size, 16) for kind in MAIN_KINDS for size in (1 * MIB, 12 * MIB)),
]
SCALING = [
    Workload("upload", 1 * MIB, MAX_CONCURRENCY),
    Workload("download", 1 * MIB, MAX_CONCURRENCY),
]
REPLICAS = (1, 2, 4)


@dataclass(frozen=True)
class Deployment:
    """Replicas of the service with a new bucket, and the URL at which they reach the store."""

    services: Sequence[Service]
    bucket: str
    store_url: str


@contextmanager
def deploy(store: Store, delay: float, replicas: int = 1) -> Iterator[Deployment]:
    """Start replicas. With a delay, direct transfers and the replicas use the same relay."""
    bucket, store_url = f"bench-{uuid4()}", store.endpoint_url
    with ExitStack() as stack:
        if delay:
            store_url = stack.enter_context(running_relay(store_url, delay))
        variables = stack.enter_context(aws_environment(store, store_url))
        asyncio.run(create_bucket(bucket))
        variables["HISTORY_BUCKET"] = bucket
        services = [stack.enter_context(running_service(variables)) for _ in range(replicas)]
        yield Deployment(services, bucket, store_url)


async def create_bucket(bucket: str) -> None:
    async with plain_s3_client() as s3:
        await s3.create_bucket(Bucket=bucket)


@asynccontextmanager
async def through_services(services: Sequence[Service]) -> AsyncIterator[list[ThroughService]]:
    """Open a client for each service."""
    async with AsyncExitStack() as stack:
        sessions = [
            aiohttp.ClientSession(service.url, connector=aiohttp.TCPConnector(limit=0))
            for service in services
        ]
        yield [ThroughService(await stack.enter_async_context(session)) for session in sessions]


async def compare_variants(
    part: str, workloads: Sequence[Workload], deployment: Deployment, rounds: int
) -> list[dict[str, Any]]:
    """Measure every workload of a part with all variants, with one replica."""
    [service] = deployment.services
    bucket = deployment.bucket
    async with AsyncExitStack() as stack:
        relay_url = stack.enter_context(running_relay(deployment.store_url, 0))
        s3 = await stack.enter_async_context(plain_s3_client())
        relayed_s3 = await stack.enter_async_context(plain_s3_client(relay_url))
        [through] = await stack.enter_async_context(through_services([service]))
        benchmark = Benchmark(
            service,
            SingleCall(s3, bucket),
            SameCalls(s3, bucket),
            SameCalls(relayed_s3, bucket),
            through,
        )
        results = []
        with tqdm(workloads, unit="workload", disable=None) as progress:
            for workload in progress:
                progress.set_postfix_str(str(workload))
                results.append(await benchmark.measure(workload, rounds))
                progress.write(report.table_row(part, results[-1]))
        return results


async def measure_scaling(
    deployment: Deployment, rounds: int, workloads: Sequence[Workload] = SCALING
) -> list[dict[str, Any]]:
    """Measure the throughput in MiB/s with one replica and with several, in turn."""
    results = []
    counts = [count for count in REPLICAS if count <= len(deployment.services)]
    async with plain_s3_client() as s3, through_services(deployment.services) as replicas:
        direct = SingleCall(s3, deployment.bucket)
        for workload in workloads:
            bundle = await prepare_bundle(workload, replicas[0])
            mib = workload.transfers * workload.bytes_per_transfer / MIB
            rates: dict[int, list[float]] = {count: [] for count in counts}
            for number in range(rounds + 1):
                for count in counts:
                    seconds = (await run_batch(workload, replicas[:count], bundle)).seconds
                    if number:  # The first round only warms up.
                        rates[count].append(mib / seconds)
                for replica in replicas:
                    await direct.delete(replica.created_keys)
                    replica.created_keys.clear()
            medians = {
                count: round(statistics.median(values), 1) for count, values in rates.items()
            }
            results.append({"work": str(workload), "mib_per_s": medians})
    return results


async def measure_memory(
    deployment: Deployment, *, uploads: int = MAX_CONCURRENCY, size: int = 100 * MIB
) -> dict[str, Any]:
    """Measure the peak memory of one replica during concurrent uploads of the largest size.

    An upload that the service refuses with 503 is retried.
    """
    service, bundle = deployment.services[0], Bundle(bytes(size))
    refused = 0

    async def upload() -> None:
        nonlocal refused
        while True:
            try:
                await through.upload("upload", bundle)
                break
            except aiohttp.ClientResponseError as error:
                if error.status != HTTPStatus.SERVICE_UNAVAILABLE or error.headers is None:
                    raise
                refused += 1
                await asyncio.sleep(float(error.headers["Retry-After"]))
        await direct.delete([through.created_keys.pop()])

    async with plain_s3_client() as s3, through_services([service]) as [through]:
        direct = SingleCall(s3, deployment.bucket)
        before = service.peak_memory
        await run_concurrently(uploads, [upload] * uploads)
    return {
        "before_mib": round(before / MIB),
        "peak_mib": round(service.peak_memory / MIB),
        "refused": refused,
    }


def run_parts(parts: Sequence[str], only: str, rounds: int, store: Store) -> dict[str, Any]:
    """Run these parts of the benchmark, print their results and return them."""
    results: dict[str, Any] = {"store": store.name, "rounds": rounds}
    for part, workloads, delay in (("near", NEAR, 0.0), ("far", FAR, DELAY)):
        if part in parts:
            selected = [workload for workload in workloads if re.search(only, str(workload))]
            click.echo(report.table_header(part))
            with deploy(store, delay) as deployment:
                results[part] = uvloop.run(compare_variants(part, selected, deployment, rounds))
    if "scaling" in parts:
        with deploy(store, DELAY, max(REPLICAS)) as deployment:
            results["scaling"] = uvloop.run(measure_scaling(deployment, rounds))
        click.echo(report.scaling_table(results["scaling"]))
    if "memory" in parts:
        with deploy(store, 0) as deployment:
            results["memory"] = uvloop.run(measure_memory(deployment))
        click.echo(report.memory_line(results["memory"]))
    return results


PARTS = ("near", "far", "scaling", "memory")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--only", default="", help="Run only workloads that match this regular expression.")
@click.option("--rounds", default=5, show_default=True, help="Rounds for each workload.")
@click.option("--save", type=click.Path(path_type=Path), help="Folder for results.json and .svg.")
def main(parts: Sequence[str], only: str, rounds: int, save: Path | None) -> None:
    """Compare the service to S3 itself, with MiniStack or the store of AWS_ENDPOINT_URL_S3."""
    with running_store() as store:
        results = run_parts(parts or PARTS, only, rounds, store)
    if save:
        (save / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (save / "results.svg").write_text(report.render_svg(results))


if __name__ == "__main__":
    main()
