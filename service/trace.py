"""The request under way: its id, and how long it has waited for client, budget and S3."""

import time
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(slots=True)
class Trace:
    """One request, from its head to the end of its answer."""

    request_id: str
    client: float = 0.0
    budget: float = 0.0
    s3: float = 0.0


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(request_id: str) -> Trace:
    """Begin a trace, for this task and those that it starts."""
    trace = Trace(request_id)
    _current.set(trace)
    return trace


def request_id() -> str | None:
    """The id of the request that this task works for, if it does."""
    trace = _current.get()
    return None if trace is None else trace.request_id


class waiting:  # noqa: N801 - it reads as what it does
    """Count the time spent inside as waiting of the current request, if there is one."""

    __slots__ = ("_began", "_on", "_trace")

    def __init__(self, on: Literal["client", "budget", "s3"]) -> None:
        self._on = on

    def __enter__(self) -> None:
        self._trace, self._began = _current.get(), time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._trace is not None:
            waited = getattr(self._trace, self._on) + time.monotonic() - self._began
            setattr(self._trace, self._on, waited)


def apart() -> Context:
    """A context for a task beside the request: it has the id, but the request does not wait."""
    context, trace = copy_context(), _current.get()
    if trace is not None:
        context.run(_current.set, replace(trace))
    return context
