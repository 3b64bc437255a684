"""No signing key in what a service says: every key that the tests use is searched for, as it comes.

In all log records, from DEBUG, of the service and the libraries below it, in the standard error of
services that run as processes, in the bodies of errors, and in the metrics.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, TypeVar

import httpx
import pytest

LOGGERS = (
    *("aioboto3", "aiobotocore", "aiohttp", "asyncio", "boto3", "botocore"),
    *("python_multipart", "service", "uvicorn.error"),
)
"""Those that write in a service's process."""

EVERYTHING = logging.DEBUG - 1
"""The level of a logger that is listened to. (On a lower one, uvicorn logs what nobody sees.)"""

SHORTEST = 8
"""Characters: a shorter key may stand anywhere by chance."""

MOST = 500
"""So many keys are searched for, the latest ones: fuzzing makes no end of them."""

_Key = TypeVar("_Key", str, bytes)


class Leaks:
    """The keys that were used, and where one of them was found."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.searched: Counter[str] = Counter()
        self._keys: dict[bytes, tuple[str, ...]] = {}

    def used(self, key: _Key) -> _Key:
        """Search for this key from now on, unless it is too short to be told from other text."""
        raw = key.encode() if isinstance(key, str) else key
        if len(raw) >= SHORTEST:
            self._keys.pop(raw, None)
            self._keys[raw] = _forms(raw)
            if len(self._keys) > MOST:
                del self._keys[next(iter(self._keys))]
        return key

    @property
    def keys(self) -> int:
        """How many are searched for."""
        return len(self._keys)

    def search(self, where: str, text: str) -> None:
        self.searched[where] += 1
        if any(form in text for forms in tuple(self._keys.values()) for form in forms):
            during = os.environ.get("PYTEST_CURRENT_TEST", "no test")
            self.found.append(f"{where}, during {during}: {text[:1000]}")

    @property
    def hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """For an httpx client: its keys are used ones, its errors and metrics are searched."""

        def asks(request: httpx.Request) -> None:
            for name, value in request.headers.raw:
                if name.lower() == b"x-signing-key":
                    self.used(value)

        def hears(response: httpx.Response) -> None:
            metrics = response.request.url.path == "/metrics"
            if metrics or response.status_code >= 400:
                body = response.read().decode(errors="replace")
                self.search("metrics" if metrics else "error", body)

        return {"request": [asks], "response": [hears]}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Search all that is logged in this process; what is heard of it elsewhere stays so."""
        others_hear = logging.Logger.callHandlers

        def hear(logger: logging.Logger, record: logging.LogRecord) -> None:
            self.search(logger.name.partition(".")[0], _text(record))
            if record.levelno >= _level(logger):
                others_hear(logger, record)

        with pytest.MonkeyPatch.context() as patch, ExitStack() as restored:
            patch.setattr(logging.Logger, "callHandlers", hear)
            for logger in map(logging.getLogger, LOGGERS):
                restored.callback(logger.setLevel, logger.level)
                logger.setLevel(EVERYTHING)
            yield

    @contextmanager
    def reading(self, output: IO[str], echo: Callable[[str], object]) -> Iterator[None]:
        """Search all that a process writes until it ends, and pass it on."""

        def read() -> None:
            for line in output:
                self.search("standard error", line)
                echo(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            reader.join(20)


def _forms(key: bytes) -> tuple[str, ...]:
    """A key as it may be written; that of plain ASCII in one way only."""
    forms = key.decode(errors="replace"), key.decode("latin-1"), repr(key)[2:-1]
    return tuple(dict.fromkeys(forms))


def _text(record: logging.LogRecord) -> str:
    """All that a formatter could make of a record."""
    exception = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return f"{record.getMessage()} {vars(record).get('fields')} {exception}"


def _level(logger: logging.Logger | None) -> int:
    """The level that a logger would have if nobody listened."""
    while logger is not None and logger.level in (logging.NOTSET, EVERYTHING):
        logger = logger.parent
    return logging.NOTSET if logger is None else logger.level


LEAKS = Leaks()
"""Of all tests in this process."""
