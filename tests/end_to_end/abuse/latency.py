"""How long others wait while somebody misbehaves."""

import statistics
import time

import httpx

from tests.support.clients import load
from tests.support.clients.signing import sign

KEY = load.KEY


def latencies(url: str, *, count: int, seconds: float = 0) -> list[float]:
    """Small uploads and downloads by turns, so many at least and for so long, in order of time."""
    took, ids = list[float](), list[str]()
    proof = sign(KEY, b"bundle")
    ends = time.monotonic() + seconds
    with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=60) as http:
        while len(took) < count or time.monotonic() < ends:
            began = time.monotonic()
            if len(took) % 2:
                answer = http.get(f"/files/{ids[-1]}", headers=proof)
                assert answer.content == b"bundle"
            else:
                answer = http.post("/upload", content=b"bundle", headers=proof)
                ids.append(answer.text)
            took.append(time.monotonic() - began)
            assert answer.status_code == 200
    return sorted(took)


def in_words(took: list[float]) -> str:
    median, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
    return f"{len(took)} requests, median {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"
