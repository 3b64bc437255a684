"""Property-based tests: a few fixed examples in every run, many random ones in a soak test."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

SOAK_FACTOR = 50
"""How many times more examples a soak test runs."""


def fuzz(
    *strategies: SearchStrategy[Any], examples: int = 40
) -> Callable[[Callable[..., None]], Callable[[bool], None]]:
    """Make a test from a property, as `@given` does, that runs this number of examples."""

    def decorate(check: Callable[..., None]) -> Callable[[bool], None]:
        @pytest.mark.parametrize("soak", [False, pytest.param(True, marks=pytest.mark.soak)])
        def test(soak: bool) -> None:  # noqa: FBT001
            count = examples * SOAK_FACTOR if soak else examples
            settings(deadline=None, derandomize=not soak, max_examples=count)(
                given(*strategies)(check)
            )()

        test.__doc__ = check.__doc__
        return test

    return decorate
