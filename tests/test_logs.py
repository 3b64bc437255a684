"""The log's lines."""

import json
import logging
from collections.abc import Iterator

import pytest

from service import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("service")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


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
