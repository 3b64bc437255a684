"""Properties put to a few examples, always the same, and in a soak to many new ones."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

MORE = 50
"""How many times as many in a soak."""


def fuzz(
    *strategies: SearchStrategy[Any], examples: int = 40
) -> Callable[[Callable[..., None]], Callable[[bool], None]]:
    """Make a test of a property: what `@given` does, with as many examples."""

    def decorate(holds: Callable[..., None]) -> Callable[[bool], None]:
        @pytest.mark.parametrize("soak", [False, pytest.param(True, marks=pytest.mark.soak)])
        def test(soak: bool) -> None:  # noqa: FBT001
            count = examples * MORE if soak else examples
            settings(deadline=None, derandomize=not soak, max_examples=count)(
                given(*strategies)(holds)
            )()

        test.__doc__ = holds.__doc__
        return test

    return decorate
