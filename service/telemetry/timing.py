"""The current request: its id, and how long it has waited for its client, for memory and for S3.

`http.access_log` starts the timing and reports it, and `logs` reads the id. Code that waits adds to
it with `measure`: `http` for the client, `bundles` for memory, both `bundles` and `s3` for S3.
`detached` is for tasks beside the request, whose waits do not count. A task that works for other
requests too, or for none, needs an empty `contextvars.Context`: otherwise its log lines and spans
would belong to the request that has started it. Log fields call memory the budget.
"""

import time
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(slots=True)
class RequestTiming:
    """One request from its headers to the end of its response; waiting times are in seconds."""

    request_id: str
    client: float = 0.0
    budget: float = 0.0
    s3: float = 0.0


_current: ContextVar[RequestTiming | None] = ContextVar("request_timing", default=None)


def start(request_id: str) -> RequestTiming:
    """Start the timing of a request, for the current task and the tasks that it creates."""
    timing = RequestTiming(request_id)
    _current.set(timing)
    return timing


def request_id() -> str | None:
    """Return the id of the request that the current task works for, or `None`."""
    timing = _current.get()
    return None if timing is None else timing.request_id


class measure:  # noqa: N801 - a context manager that is used like a function
    """Add the time spent inside this context to the current request, if there is one."""

    __slots__ = ("_started_at", "_timing", "_wait")

    def __init__(self, wait: Literal["client", "budget", "s3"]) -> None:
        self._wait = wait

    def __enter__(self) -> None:
        self._timing, self._started_at = _current.get(), time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._timing is not None:
            total = getattr(self._timing, self._wait) + time.monotonic() - self._started_at
            setattr(self._timing, self._wait, total)


def detached() -> Context:
    """Return a context for a background task of the current request.

    Its log lines carry the request's id, but its waiting times are not added to the request's.
    """
    context, timing = copy_context(), _current.get()
    if timing is not None:
        context.run(_current.set, replace(timing))
    return context
