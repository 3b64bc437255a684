"""The latency of well-behaved clients while other clients attack the service."""

import statistics
import time

import httpx

from tests.support.clients import load
from tests.support.clients.signing import sign

KEY = load.KEY


def measure_latencies(url: str, *, count: int, seconds: float = 0) -> list[float]:
    """Measure small uploads and downloads in turn, at least `count` of them, for `seconds` or more.

    Returns the times in seconds, the shortest first.
    """
    times, bundle_ids = list[float](), list[str]()
    proof = sign(KEY, b"bundle")
    deadline = time.monotonic() + seconds
    with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=60) as http:
        while len(times) < count or time.monotonic() < deadline:
            started = time.monotonic()
            if len(times) % 2:
                response = http.get(f"/files/{bundle_ids[-1]}", headers=proof)
                assert response.content == b"bundle"
            else:
                response = http.post("/upload", content=b"bundle", headers=proof)
                bundle_ids.append(response.text)
            times.append(time.monotonic() - started)
            assert response.status_code == 200
    return sorted(times)


def summarize(times: list[float]) -> str:
    median, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    return f"{len(times)} requests, median {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"
