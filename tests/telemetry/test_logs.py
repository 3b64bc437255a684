"""The format of log lines, and records that are dropped."""

import asyncio
import contextvars
import json
import logging

import pytest

from service.telemetry import logs, timing

pytestmark = pytest.mark.usefixtures("_restored_logging")


def test_json_format_writes_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    log = logging.getLogger("service.test")
    log.debug("below the level")
    log.info("two\nlines of %s", "text")
    try:
        raise ArithmeticError("broken")
    except ArithmeticError:
        log.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["message"]) == ("info", "two\nlines of text")
    assert first["time"].endswith("+00:00")
    assert "ArithmeticError: broken" in second["exception"]


def test_text_format_writes_records_from_its_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text", "warning")
    logging.getLogger("service.test").info("below the level")
    logging.getLogger("botocore").info("below the level, too")
    logging.getLogger("service.test").warning("at the level")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING at the level")


def test_log_lines_of_a_request_contain_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")

    def request() -> None:
        timing.start("an-id")
        logging.getLogger("service.test").info("inside", extra={"fields": {"route": "/upload"}})
        timing.detached().run(logging.getLogger("service.test").info, "in the background")

    contextvars.copy_context().run(request)
    logging.getLogger("service.test").info("outside")
    inside, background, outside = map(json.loads, capsys.readouterr().err.splitlines())
    assert (inside["request_id"], inside["route"]) == ("an-id", "/upload")
    assert background["request_id"] == "an-id"
    assert "request_id" not in outside


def test_interrupted_and_cancelled_requests_are_not_logged_as_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("text", "info")
    logging.getLogger("uvicorn.error").error("ASGI callable returned without completing response.")
    try:
        raise asyncio.CancelledError
    except asyncio.CancelledError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    logging.getLogger("uvicorn.error").error("another")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("ERROR another")
