"""`make bench`; or a piece of it: `python -m tests.bench near --only 'upload.* 12 MiB'`."""

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

from tests.bench import parties, report
from tests.bench.parties import Service
from tests.bench.ways import KIB, MIB, Bundle, Direct, Kind, SameCalls, Through
from tests.bench.work import Bench, Work, batch, stored, together
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

DELAY = 0.02
"""Seconds to a store that is as far away as S3 is."""

CROWD = 64
"""At a time, at most."""

SIZES = (4 * KIB, 128 * KIB, 1 * MIB, 12 * MIB, 100 * MIB)
KINDS: tuple[Kind, ...] = get_args(Kind)
BOTH_WAYS: tuple[Kind, ...] = ("upload", "first download", "download")

NEAR = [
    Work(kind, size, at_a_time)
    for at_a_time in (1, 16, CROWD)
    for kind in (KINDS if at_a_time < CROWD else BOTH_WAYS)
    for size in SIZES
    if size * at_a_time <= 192 * MIB
]
FAR = [
    *(Work(kind, size, 1) for kind in BOTH_WAYS for size in SIZES),
    *(Work(kind, size, 16) for kind in BOTH_WAYS for size in (1 * MIB, 12 * MIB)),
]
SCALED = [Work("upload", 1 * MIB, CROWD), Work("download", 1 * MIB, CROWD)]
REPLICAS = (1, 2, 4)


@dataclass(frozen=True)
class Setup:
    """Replicas in front of a new bucket of a store, and the URL at which all find that."""

    services: Sequence[Service]
    bucket: str
    url: str


@contextmanager
def setup(store: Store, delay: float, count: int = 1) -> Iterator[Setup]:
    """What is direct goes the same way to the store as the services do."""
    bucket, url = f"bench-{uuid4()}", store.endpoint_url
    with ExitStack() as stack:
        if delay:
            url = stack.enter_context(parties.delayed(url, delay))
        variables = stack.enter_context(aws_environment(store, url))
        asyncio.run(make_bucket(bucket))
        variables["HISTORY_BUCKET"] = bucket
        services = [stack.enter_context(parties.service(variables)) for _ in range(count)]
        yield Setup(services, bucket, url)


async def make_bucket(bucket: str) -> None:
    async with parties.bare() as s3:
        await s3.create_bucket(Bucket=bucket)


@asynccontextmanager
async def through(services: Sequence[Service]) -> AsyncIterator[list[Through]]:
    """The same client for each."""
    async with AsyncExitStack() as stack:
        sessions = [
            aiohttp.ClientSession(service.url, connector=aiohttp.TCPConnector(limit=0))
            for service in services
        ]
        yield [Through(await stack.enter_async_context(session)) for session in sessions]


async def compare(works: Sequence[Work], at: Setup, rounds: int) -> list[dict[str, Any]]:
    """Every work on all ways, through one replica."""
    [service] = at.services
    async with AsyncExitStack() as stack:
        relay = stack.enter_context(parties.delayed(at.url, 0))
        s3 = await stack.enter_async_context(parties.bare())
        behind = await stack.enter_async_context(parties.bare(relay))
        [way] = await stack.enter_async_context(through([service]))
        bench = Bench(
            service,
            Direct(s3, at.bucket),
            SameCalls(s3, at.bucket),
            SameCalls(behind, at.bucket),
            way,
        )
        results = []
        with tqdm(works, unit="work", disable=None) as progress:
            for work in progress:
                progress.set_postfix_str(str(work))
                results.append(await bench.measure(work, rounds))
                progress.write(report.line(results[-1]))
        return results


async def scale(at: Setup, rounds: int, works: Sequence[Work] = SCALED) -> list[dict[str, Any]]:
    """MiB/s through one replica and through several, by turns."""
    results = []
    counts = [count for count in REPLICAS if count <= len(at.services)]
    async with parties.bare() as s3, through(at.services) as ways:
        direct = Direct(s3, at.bucket)
        for work in works:
            bundle = await stored(work, ways[0])
            speeds: dict[int, list[float]] = {count: [] for count in counts}
            for number in range(rounds + 1):
                for count in counts:
                    seconds = (await batch(work, ways[:count], bundle)).seconds
                    if number:
                        speeds[count].append(work.count * work.moved / MIB / seconds)
                for way in ways:
                    await direct.delete(way.made)
                    way.made.clear()
            medians = {count: round(statistics.median(it), 1) for count, it in speeds.items()}
            results.append({"work": str(work), "mib_per_s": medians})
    return results


async def crowd(at: Setup, *, uploads: int = CROWD, size: int = 100 * MIB) -> dict[str, Any]:
    """The memory that uploads at once of the largest size take; who is refused comes again."""
    service, bundle = at.services[0], Bundle(bytes(size))
    refused = 0

    async def upload() -> None:
        nonlocal refused
        while True:
            try:
                await way.upload("upload", bundle)
                break
            except aiohttp.ClientResponseError as error:
                if error.status != HTTPStatus.SERVICE_UNAVAILABLE or error.headers is None:
                    raise
                refused += 1
                await asyncio.sleep(float(error.headers["Retry-After"]))
        await direct.delete([way.made.pop()])

    async with parties.bare() as s3, through([service]) as [way]:
        direct = Direct(s3, at.bucket)
        before = service.peak
        await together(uploads, [upload] * uploads)
    return {
        "before_mib": round(before / MIB),
        "peak_mib": round(service.peak / MIB),
        "refused": refused,
    }


def measure(parts: Sequence[str], only: str, rounds: int, store: Store) -> dict[str, Any]:
    """What each part of the benchmark finds."""
    found: dict[str, Any] = {"store": store.name, "rounds": rounds}
    for part, works, delay in (("near", NEAR, 0.0), ("far", FAR, DELAY)):
        if part in parts:
            chosen = [work for work in works if re.search(only, str(work))]
            click.echo(report.title(part))
            with setup(store, delay) as at:
                found[part] = uvloop.run(compare(chosen, at, rounds))
    if "scaling" in parts:
        with setup(store, DELAY, max(REPLICAS)) as at:
            found["scaling"] = uvloop.run(scale(at, rounds))
        click.echo(report.scaling(found["scaling"]))
    if "memory" in parts:
        with setup(store, 0) as at:
            found["memory"] = uvloop.run(crowd(at))
        click.echo(report.memory(found["memory"]))
    return found


PARTS = ("near", "far", "scaling", "memory")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--only", default="", help="Leave out what this regular expression does not match.")
@click.option("--rounds", default=5, show_default=True, help="Rounds of each work.")
@click.option("--save", type=click.Path(path_type=Path), help="Folder for results.json and .svg.")
def main(parts: Sequence[str], only: str, rounds: int, save: Path | None) -> None:
    """Measure how near the service comes to S3 itself, on MiniStack or AWS_ENDPOINT_URL_S3."""
    with parties.store() as store:
        found = measure(parts or PARTS, only, rounds, store)
    if save:
        (save / "results.json").write_text(json.dumps(found, indent=1) + "\n")
        (save / "results.svg").write_text(report.picture(found))


if __name__ == "__main__":
    main()
