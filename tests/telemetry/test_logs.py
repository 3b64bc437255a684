"""The log's lines."""

import asyncio
import contextvars
import json
import logging

import pytest

from service.telemetry import logs, timing

pytestmark = pytest.mark.usefixtures("_restored_logging")


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    log = logging.getLogger("service.test")
    log.debug("not this")
    log.info("two\nlines of %s", "text")
    try:
        raise ArithmeticError("broken")
    except ArithmeticError:
        log.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["message"]) == ("info", "two\nlines of text")
    assert first["time"].endswith("+00:00")
    assert "ArithmeticError: broken" in second["exception"]


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text", "warning")
    logging.getLogger("service.test").info("not this")
    logging.getLogger("botocore").info("nor this")
    logging.getLogger("service.test").warning("but this")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING but this")


def test_a_line_within_a_request_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")

    def request() -> None:
        timing.start("an-id")
        logging.getLogger("service.test").info("inside", extra={"fields": {"route": "/upload"}})
        timing.detached().run(logging.getLogger("service.test").info, "beside")

    contextvars.copy_context().run(request)
    logging.getLogger("service.test").info("outside")
    inside, beside, outside = map(json.loads, capsys.readouterr().err.splitlines())
    assert (inside["request_id"], inside["route"]) == ("an-id", "/upload")
    assert beside["request_id"] == "an-id"
    assert "request_id" not in outside


def test_what_is_cut_off_or_cancelled_is_no_error_of_the_server(
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
