"""An event loop in which time passes at once, and which fails if it would wait forever."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class _Selector(selectors.DefaultSelector):
    """A selector that does not wait: it advances `now` by the timeout instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "deadlock: every task waits, and no timer is running"
        self.now += max(timeout, 0)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop with its own clock, which starts at 0. It has no sockets and no threads."""

    def __init__(self) -> None:
        self._selector_with_clock = _Selector()
        super().__init__(self._selector_with_clock)

    def time(self) -> float:
        return self._selector_with_clock.now


def simulate(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` as `asyncio.run` does, but without waiting for timers."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)


async def let_tasks_run(steps: int = 5) -> None:
    """Let every task that is not blocked run for so many steps."""
    for _ in range(steps):
        await asyncio.sleep(0)
