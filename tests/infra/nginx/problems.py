"""The format of error responses."""

import httpx


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    """Check the format that all errors share, whether from nginx or from the service."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["X-Request-Id"]
    assert (response.json()["status"], response.json()["code"]) == (status, code)
    assert ("Retry-After" in response.headers) == (status in (429, 502, 503, 504))
