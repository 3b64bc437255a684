"""What the proxy can be told to do, and when it does so."""

from dataclasses import dataclass, field
from threading import Event


@dataclass(frozen=True)
class Respond:
    """Reads and drops the request, then answers an S3 error; the store is not asked."""

    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class ResetRequest:
    """Resets once so much of the request's body has come, or all; the store is not asked."""

    after_bytes: int = 0


@dataclass(frozen=True)
class Reset:
    """Resets after so much of the answer's body, or all of a shorter one.

    Of what was sent, the client may still lose what it has not read.
    """

    after_bytes: int = 0


@dataclass(frozen=True)
class Truncate:
    """Closes cleanly (FIN) after exactly so much of the answer's body, or all of a shorter one."""

    after_bytes: int = 0


@dataclass(frozen=True)
class Stall:
    """Sends nothing for a while after so much of the answer's body, if it is longer than that."""

    seconds: float
    after_bytes: int = 0


@dataclass(frozen=True)
class Drip:
    """Sends the answer's body slowly."""

    bytes_per_second: int


@dataclass(frozen=True)
class Delay:
    """Forwards the request only after a while."""

    seconds: float


@dataclass(frozen=True)
class Swallow:
    """Lets the store act, drops its answer and closes."""


@dataclass(frozen=True)
class IgnoreRange:
    """Forwards the request without its `Range`, for stores that do not check its signature."""


@dataclass(frozen=True)
class AddRange:
    """Forwards the request with a `Range`, for stores that do not check its signature."""

    value: str


@dataclass(frozen=True, eq=False)
class Withhold:
    """Reads none of the request's body until it is `told`, then what comes; the store is not asked.

    What came is `taken`, all of it once that has `ended`.
    """

    told: Event = field(default_factory=Event)
    taken: bytearray = field(default_factory=bytearray)
    ended: Event = field(default_factory=Event)


Action = (
    Respond
    | ResetRequest
    | Reset
    | Truncate
    | Stall
    | Drip
    | Delay
    | Swallow
    | IgnoreRange
    | AddRange
    | Withhold
)


@dataclass
class Fault:
    """When to do what: the `after` first matching requests pass, then every `every`-th is struck.

    `operation` None matches every request; `times` None never ends. Of several faults that are due
    for a request the first one strikes, the others wait.
    """

    operation: str | None
    action: Action
    times: int | None = 1
    after: int = 0
    every: int = 1
    seen: int = field(default=0, init=False)
    struck: int = field(default=0, init=False)

    def due(self, operation: str) -> bool:
        """Counts a request; true if it is one to strike."""
        if self.operation not in (None, operation):
            return False
        self.seen += 1
        past = self.seen - self.after - 1
        return past >= 0 and past % self.every == 0 and self.struck != self.times
