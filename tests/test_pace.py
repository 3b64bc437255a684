"""How slow a client may be."""

import pytest

from service.pace import GRACE, RATE, Pace


@pytest.mark.parametrize(
    ("waits", "left"),
    [
        ([], GRACE),
        ([(4, 0)], 6),  # nothing for 4 s, and 0 B/s on average from 10 s on
        ([(9, 100 * RATE)], 30),  # what came buys time: 100 s in all, 30 at a stretch
        ([(9, 100 * RATE), (29, 0)], 1),
        ([(9, 100 * RATE), (29, 0), (0, 1)], 30),
        ([(11, 11 * RATE)], 0),
        ([(20, 25 * RATE)], 5),
        ([(30, 0)], -20),
    ],
)
def test_what_is_left(waits: list[tuple[float, int]], left: float) -> None:
    pace = Pace(30)
    for seconds, moved in waits:
        pace.waited(seconds, moved)
    assert pace.left == pytest.approx(left, abs=0.001)


def test_little_patience_bounds_even_the_first_wait() -> None:
    assert Pace(1).left == 1
