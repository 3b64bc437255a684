"""The log of the process on standard error: text for people, JSON for machines.

Every command of `service.cli` calls `configure` once. JSON lines also have the id of the current
request, and the fields that the caller passes as `extra={"fields": ...}`. Expected errors of
uvicorn are dropped.
"""

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from service.telemetry import timing

Format = Literal["text", "json"]

_EXPECTED = {
    "ASGI callable returned without completing response.",
    "Invalid HTTP request received.",
}
"""Errors of uvicorn that are part of normal operation.

The first is a download that was cut off because S3 failed. The second is an invalid request, which
`http.server.connection` logs itself.
"""


class _JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object on one line, with its time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := timing.request_id():
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(log_format: Format, level: str) -> None:
    """Send the log of this process to standard error.

    `level` applies to the service. Libraries log warnings and errors only.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonFormatter()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, number), force=True)
    logging.getLogger("service").setLevel(number)
    logging.getLogger("uvicorn.error").addFilter(_is_unexpected)
    # Its warnings quote the client's bytes that it could not parse.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Drop uvicorn's errors for expected events, and for requests cancelled at shutdown."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (record.msg in _EXPECTED or cancelled)
