"""The lines of the access log that a test's service has written, as pytest's `caplog` keeps them.

A line is written after its response was sent, so tests wait for it.
"""

from typing import Any

import pytest

from service.http import access_log
from tests.support.polling import wait_until


def logged_requests(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the fields of all lines so far."""
    records = [record for record in caplog.records if record.name == access_log.__name__]
    return [vars(record)["fields"] for record in records]


def logged_fields(caplog: pytest.LogCaptureFixture, request_id: str) -> dict[str, Any]:
    """Wait for the line of a request, and return its fields."""

    def matching() -> list[dict[str, Any]]:
        return [line for line in logged_requests(caplog) if line["request_id"] == request_id]

    wait_until(lambda: bool(matching()))
    [fields] = matching()
    return fields
