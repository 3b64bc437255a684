"""A DELETE at the same time as the first download, which writes a receipt."""

import asyncio
import random
import re
from collections import Counter

import httpx
import pytest

from tests.support.clients import random_transfers
from tests.support.clients.signing import sign
from tests.support.services.thread import Service, StartService

KEY = "the key that signs in a race"
CONCURRENCY = 4


@pytest.mark.every_store
@pytest.mark.parametrize(
    "races", [10, pytest.param(300, marks=pytest.mark.soak)], ids=["few", "many"]
)
def test_deleted_bundle_is_never_served_again(start_service: StartService, races: int) -> None:
    """On Ceph, writing a tag while an object is being deleted can restore the object."""
    seed = random_transfers.seed(soak=races > 100)
    service = start_service()
    outcomes = asyncio.run(asyncio.wait_for(run_races(service, races, random.Random(seed)), 280))
    print(dict(outcomes))
    assert outcomes["deleted"] == races
    assert outcomes["after the delete: 404"] == races
    assert outcomes["at the end: 404"] == races
    if service.records == "tags" and races >= 100:  # In fewer, the delete may always be first.
        assert outcomes["receipts"]
    assert service.objects() == []


async def run_races(service: Service, races: int, rng: random.Random) -> Counter[str]:
    """Run the races, `CONCURRENCY` at a time; count what the clients saw and the calls to S3."""
    outcomes: Counter[str] = Counter()
    proofs: dict[str, dict[str, str]] = {}
    remaining = iter(range(races))

    async def worker(http: httpx.AsyncClient) -> None:
        for _ in remaining:
            bundle = rng.randbytes(1000)
            proof = sign(KEY, bundle)
            headers = {"X-HMAC": proof["X-HMAC"]}
            path = "/files/" + (await http.post("/upload", content=bundle, headers=headers)).text
            proofs[path] = proof
            outcomes.update(await race(http, path, proof, rng.uniform(0, 0.004)))

    async with service.async_client() as http:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(worker(http))
        for path, proof in proofs.items():
            response = await http.get(path, headers=proof)
            outcomes[f"at the end: {response.status_code}"] += 1
        outcomes.update(count_calls((await http.get("/metrics")).text))
    return outcomes


def count_calls(metrics: str) -> dict[str, int]:
    """Count the receipts and the deletes. Repeated deletes are counted every time."""
    pattern = r'history_s3_request_seconds_count{operation="(\w+)",outcome="ok"} (\d+)'
    counts = {operation: int(float(count)) for operation, count in re.findall(pattern, metrics)}
    return {"receipts": counts.get("PutObjectTagging", 0), "deletes": counts["DeleteObject"]}


async def race(
    http: httpx.AsyncClient, path: str, proof: dict[str, str], delay: float
) -> list[str]:
    """Download a bundle, and delete it `delay` seconds after the download started."""

    async def delete() -> str:
        await asyncio.sleep(delay)
        response = await http.delete(path, headers=proof)
        assert response.status_code == 204, response.text
        return f"after the delete: {(await http.get(path, headers=proof)).status_code}"

    download, after_delete = await asyncio.gather(http.get(path, headers=proof), delete())
    return [f"download {download.status_code}", "deleted", after_delete]
