"""What the proxy can do to a request or its response, and when."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event


@dataclass(frozen=True)
class Respond:
    """Reads the request, then responds with an S3 error. The store does not get the request.

    Without a code, the response has no body.

    The response is sent after `after_bytes` of the request's body, by default at its end. If it is
    sent before the end, the rest of the body is read and dropped.
    """

    status: int = 503
    code: str = "SlowDown"
    after_bytes: float = math.inf


@dataclass(frozen=True)
class ResetRequest:
    """Resets the connection after `after_bytes` of the request's body, or at its end.

    The store does not get the request.
    """

    after_bytes: int = 0


@dataclass(frozen=True)
class DropSilentRequest:
    """Resets the connection if the client sends nothing of its request for `seconds`."""

    seconds: float


@dataclass(frozen=True, eq=False)
class KeepCutBody:
    """Stores what has arrived of the request's body when the client disconnects.

    The client has to disconnect. Then `kept` is set. For stores that do not check the request's
    signature.
    """

    kept: Event = field(default_factory=Event)


@dataclass(frozen=True)
class Reset:
    """Resets the connection after `after_bytes` of the response's body, or at its end.

    The client may lose bytes that it has received but not read.
    """

    after_bytes: int = 0


@dataclass(frozen=True)
class Truncate:
    """Closes the connection (FIN) after `after_bytes` of the response's body, or at its end.

    It is closed after a `pause` in seconds. When it is closed, a client may drop bytes that it has
    received but not passed on.
    """

    after_bytes: int = 0
    pause: float = 0


@dataclass(frozen=True)
class Stall:
    """Pauses after `after_bytes` of the response's body, if it is longer."""

    seconds: float
    after_bytes: int = 0


@dataclass(frozen=True)
class Throttle:
    """Sends the response's body slowly."""

    bytes_per_second: int


@dataclass(frozen=True)
class Delay:
    """Waits before it forwards the request."""

    seconds: float


@dataclass(frozen=True, eq=False)
class Hold:
    """Forwards the request when `release` is set, unless its client has disconnected."""

    release: Event = field(default_factory=Event)


@dataclass(frozen=True)
class DropResponse:
    """Forwards the request, drops the response, and closes the connection."""


@dataclass(frozen=True)
class DropHeader:
    """Forwards the request without a header, for stores that do not check its signature."""

    name: str


@dataclass(frozen=True)
class DropElement:
    """Forwards the request without an element of its XML, for stores that check no digest."""

    name: str


@dataclass(frozen=True)
class AddRange:
    """Forwards the request with a `Range`, for stores that do not check its signature."""

    value: str


@dataclass(frozen=True, eq=False)
class PauseRequest:
    """Reads nothing of the request's body until `resume` is set. The store does not get it.

    After that, the proxy reads the body into `received`, and sets `ended` at its end.
    """

    resume: Event = field(default_factory=Event)
    received: bytearray = field(default_factory=bytearray)
    ended: Event = field(default_factory=Event)


Action = (
    Respond
    | ResetRequest
    | DropSilentRequest
    | KeepCutBody
    | Reset
    | Truncate
    | Stall
    | Throttle
    | Delay
    | Hold
    | DropResponse
    | DropHeader
    | DropElement
    | AddRange
    | PauseRequest
)


@dataclass
class Fault:
    """An action, and the requests to which it is applied.

    The first `after` matching requests pass. Then the action is applied to every `every`-th one,
    `times` times, or without a limit if that is None. `operation` None matches every request. If
    several faults are due for the same request, only the first one is injected. The others wait.
    While `condition` is false, no request matches.
    """

    operation: str | None
    action: Action
    times: int | None = 1
    after: int = 0
    every: int = 1
    condition: Callable[[], bool] = lambda: True
    seen: int = field(default=0, init=False)
    injected: int = field(default=0, init=False)

    def count(self, operation: str) -> bool:
        """Count a request. Return whether the fault is due for it."""
        if self.operation not in (None, operation) or not self.condition():
            return False
        self.seen += 1
        index = self.seen - self.after - 1
        return index >= 0 and index % self.every == 0 and self.injected != self.times
