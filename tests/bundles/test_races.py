"""A DELETE races the receipt that a first download writes: what is deleted stays so."""

import asyncio
import random
import re
from collections import Counter

import httpx
import pytest

from tests.support.clients import random_transfers
from tests.support.clients.signing import sign
from tests.support.services.thread import Serve, Service

KEY = "the key that signs in a race"
AT_ONCE = 4


@pytest.mark.every_store
@pytest.mark.parametrize(
    "races", [10, pytest.param(300, marks=pytest.mark.soak)], ids=["few", "many"]
)
def test_what_is_deleted_is_never_served_again(serve: Serve, races: int) -> None:
    """On Ceph, a tag that is being written while an object is deleted can bring it back."""
    seed = random_transfers.seed(soak=races > 100)
    service = serve()
    outcomes = asyncio.run(asyncio.wait_for(run(service, races, random.Random(seed)), 280))
    print(dict(outcomes))
    assert outcomes["deleted"] == races
    assert outcomes["at once: 404"] == races
    assert outcomes["in the end: 404"] == races
    assert outcomes["receipts"] or races < 100  # The delete may win a few of them all.
    assert service.objects() == []


async def run(service: Service, races: int, rng: random.Random) -> Counter[str]:
    """So many races, some at once; what came of the downloads, the deletes, and a look at each."""
    outcomes: Counter[str] = Counter()
    bundles: dict[str, dict[str, str]] = {}
    turns = iter(range(races))

    async def one_after_another(http: httpx.AsyncClient) -> None:
        for _ in turns:
            bundle = rng.randbytes(1000)
            proof = sign(KEY, bundle)
            headers = {"X-HMAC": proof["X-HMAC"]}
            path = "/files/" + (await http.post("/upload", content=bundle, headers=headers)).text
            bundles[path] = proof
            outcomes.update(await race(http, path, proof, rng.uniform(0, 0.004)))

    async with service.many() as http:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_another(http))
        for path, proof in bundles.items():
            answer = await http.get(path, headers=proof)
            outcomes[f"in the end: {answer.status_code}"] += 1
        outcomes.update(calls((await http.get("/metrics")).text))
    return outcomes


def calls(metrics: str) -> dict[str, int]:
    """How many receipts were written, and deletes sent: more than there were races, if repeated."""
    name = r'history_s3_request_seconds_count{operation="(\w+)",outcome="ok"} (\d+)'
    found = {operation: int(float(count)) for operation, count in re.findall(name, metrics)}
    return {"receipts": found.get("PutObjectTagging", 0), "deletes": found["DeleteObject"]}


async def race(
    http: httpx.AsyncClient, path: str, proof: dict[str, str], start: float
) -> list[str]:
    """A download, and a DELETE that starts so many seconds later."""

    async def delete() -> str:
        await asyncio.sleep(start)
        deleted = await http.delete(path, headers=proof)
        assert deleted.status_code == 204, deleted.text
        return f"at once: {(await http.get(path, headers=proof)).status_code}"

    got, looked = await asyncio.gather(http.get(path, headers=proof), delete())
    return [f"download {got.status_code}", "deleted", looked]
