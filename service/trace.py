"""The request under way: its id, and how long it has waited for client, budget and S3."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def waiting(on: Literal["client", "budget", "s3"]) -> Iterator[None]:
    """Count the time spent inside as waiting of the current request, if there is one."""
    trace, began = _current.get(), time.monotonic()
    try:
        yield
    finally:
        if trace is not None:
            setattr(trace, on, getattr(trace, on) + time.monotonic() - began)


def apart() -> Context:
    """A context for a task beside the request: it has the id, but the request does not wait."""
    context, trace = copy_context(), _current.get()
    if trace is not None:
        context.run(_current.set, replace(trace))
    return context
