"""Searches the output of services for signing keys and upload tokens, which must never be there.

Every key and token that the tests use is searched for. The searched output is: all log records from
DEBUG on, of the service and of the libraries that it uses; the standard error of services that run
as processes; the log of nginx; the bodies of error responses; and the metrics.
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
    *("opentelemetry", "python_multipart", "service", "uvicorn.error"),
)
"""The loggers that are used in a service's process."""

BELOW_DEBUG = logging.DEBUG - 1
"""The level of the searched loggers. Below level 6, uvicorn would also log its traces."""

MIN_KEY_LENGTH = 8
"""Characters. A shorter key could appear in other text by chance."""

MAX_KEYS = 500
"""How many keys are searched for. The oldest are dropped, because fuzzing adds very many."""

_Key = TypeVar("_Key", str, bytes)


class KeyLeakDetector:
    """Collects the keys that are used, and reports each output that contains one of them."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.search_counts: Counter[str] = Counter()
        self._keys: dict[bytes, tuple[str, ...]] = {}

    def add_key(self, key: _Key) -> _Key:
        """Search for this key from now on, unless it is too short. Return the key."""
        raw = key.encode() if isinstance(key, str) else key
        if len(raw) >= MIN_KEY_LENGTH:
            self._keys.pop(raw, None)
            self._keys[raw] = _encodings(raw)
            if len(self._keys) > MAX_KEYS:
                del self._keys[next(iter(self._keys))]
        return key

    @property
    def key_count(self) -> int:
        """How many keys are searched for."""
        return len(self._keys)

    def search(self, source: str, text: str) -> None:
        self.search_counts[source] += 1
        if any(key in text for encodings in tuple(self._keys.values()) for key in encodings):
            test = os.environ.get("PYTEST_CURRENT_TEST", "no test")
            self.findings.append(f"{source}, during {test}: {text[:1000]}")

    @property
    def httpx_hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """Event hooks for an httpx client: add the keys it sends, search errors and metrics."""

        def on_request(request: httpx.Request) -> None:
            for name, value in request.headers.raw:
                if name.lower() in (b"x-signing-key", b"authorization"):
                    self.add_key(value.removeprefix(b"Bearer "))

        def on_response(response: httpx.Response) -> None:
            is_metrics = response.request.url.path == "/metrics"
            if is_metrics or response.status_code >= 400:
                body = response.read().decode(errors="replace")
                self.search("metrics" if is_metrics else "error", body)

        return {"request": [on_request], "response": [on_response]}

    @contextmanager
    def search_logs(self) -> Iterator[None]:
        """Search all log records of this process. Handlers get the same records as before."""
        call_handlers = logging.Logger.callHandlers

        def search_record(logger: logging.Logger, record: logging.LogRecord) -> None:
            self.search(logger.name.partition(".")[0], _text(record))
            if record.levelno >= _original_level(logger):
                call_handlers(logger, record)

        with pytest.MonkeyPatch.context() as patch, ExitStack() as restored:
            patch.setattr(logging.Logger, "callHandlers", search_record)
            for logger in map(logging.getLogger, LOGGERS):
                restored.callback(logger.setLevel, logger.level)
                logger.setLevel(BELOW_DEBUG)
            yield

    @contextmanager
    def search_output(self, output: IO[str], echo: Callable[[str], object]) -> Iterator[None]:
        """Search every line that a process writes until it ends, and pass the line to `echo`."""

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


def _encodings(key: bytes) -> tuple[str, ...]:
    """Return the ways in which a key may be written as text. Plain ASCII has only one."""
    encodings = key.decode(errors="replace"), key.decode("latin-1"), repr(key)[2:-1]
    return tuple(dict.fromkeys(encodings))


def _text(record: logging.LogRecord) -> str:
    """Return everything that a formatter could write for a record."""
    exception = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return f"{record.getMessage()} {vars(record).get('fields')} {exception}"


def _original_level(logger: logging.Logger | None) -> int:
    """Return the level that a logger would have without the search."""
    while logger is not None and logger.level in (logging.NOTSET, BELOW_DEBUG):
        logger = logger.parent
    return logging.NOTSET if logger is None else logger.level


LEAK_DETECTOR = KeyLeakDetector()
"""The detector of all tests in this process."""
