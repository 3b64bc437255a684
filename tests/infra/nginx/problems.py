"""What every error looks like."""

import httpx


def problem(answer: httpx.Response, status: int, code: str) -> None:
    """What every error looks like, whoever makes it."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["X-Request-Id"]
    assert (answer.json()["status"], answer.json()["code"]) == (status, code)
    assert ("Retry-After" in answer.headers) == (status in (429, 502, 503, 504))
