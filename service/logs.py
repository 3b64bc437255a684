"""Log lines on standard error: text for people, JSON for machines."""

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from service import trace

Format = Literal["text", "json"]


class _Json(logging.Formatter):
    """One JSON object a line, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := trace.request_id():
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(form: Format, level: str) -> None:
    """Send this process's log to standard error; what lies below the service only from WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, _number(level)), force=True)
    logging.getLogger("service").setLevel(_number(level))
    logging.getLogger("uvicorn.error").addFilter(_is_an_error)
    # It logs what it could not parse.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _is_an_error(record: logging.LogRecord) -> bool:
    """Drop what uvicorn logs of expected events.

    That is a bundle that is cut short on purpose, a request that `connection` logs itself, and what
    is cancelled when the process ends.
    """
    expected = record.msg in {
        "ASGI callable returned without completing response.",
        "Invalid HTTP request received.",
    }
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (expected or cancelled)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
