"""Ranges and conditions of RFC 9110, as tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import PreconditionFailed, RangeNotSatisfiable
from service.ranges import Stat, Wanted

STAT = Stat(size=100, etag='"etag"', modified_at=784_111_777.25)
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"

WHOLE = None
RANGES: list[tuple[str, range | None]] = [
    ("bytes=0-0", range(1)),
    ("bytes=0-99", range(100)),
    ("bytes=0-", range(100)),
    ("bytes=40-", range(40, 100)),
    ("bytes=99-1000", range(99, 100)),
    ("bytes=0-" + "9" * 40, range(100)),
    ("bytes=-1", range(99, 100)),
    ("bytes=-1000", range(100)),
    ("BYTES = 5-6 ", range(5, 7)),
    # More than one, or none that is understood: the whole.
    ("bytes=0-1,5-6", WHOLE),
    ("bytes=0-1,", WHOLE),
    ("bytes=-", WHOLE),
    ("bytes=", WHOLE),
    ("bytes=7-6", WHOLE),
    ("bytes=a-b", WHOLE),
    ("bytes=+1-2", WHOLE),
    ("bytes=1 - 2", WHOLE),
    ("bytes=\u0661-2", WHOLE),
    ("items=0-1", WHOLE),
    ("", WHOLE),
]


@pytest.mark.parametrize(("header", "expected"), RANGES)
def test_ranges(header: str, expected: range | None) -> None:
    assert Wanted(header).of(STAT) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=999-"])
def test_not_satisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        Wanted(header).of(STAT)
    assert caught.value.size == 100


@pytest.mark.parametrize(
    ("if_range", "holds"),
    [
        ('"etag"', True),
        (DATE, True),
        ('"other"', False),
        ('W/"etag"', False),
        ("Sun, 06 Nov 1994 08:49:38 GMT", False),
        ("Sun, 06 Nov 1994 08:49:36 GMT", False),
        ("Sun, 06 Nov 1994 08:49:37 -0000", False),
        ("Sun, 06 Nov 1994 08:49:37 +" + "9" * 30, False),
        ("yesterday", False),
        ("", False),
    ],
)
def test_if_range(if_range: str, *, holds: bool) -> None:
    assert Wanted("bytes=1-2", if_range=if_range).of(STAT) == (range(1, 3) if holds else WHOLE)


@pytest.mark.parametrize(
    ("if_match", "holds"),
    [
        ("*", True),
        ('"etag"', True),
        ('"other", "etag"', True),
        ('"other","etag"', True),
        ('W/"etag"', False),
        ('"other"', False),
        ("etag", False),
        ('""', False),
        ("", False),
    ],
)
def test_if_match(if_match: str, *, holds: bool) -> None:
    wanted = Wanted("bytes=1-2", if_match)
    if holds:
        assert wanted.of(STAT) == range(1, 3)
    else:
        with pytest.raises(PreconditionFailed):
            wanted.of(STAT)


def test_what_asks_for_no_look_at_the_object_first() -> None:
    assert Wanted().unconditional
    assert Wanted(if_range=DATE).unconditional
    assert not Wanted("bytes=0-").unconditional
    assert not Wanted(if_match="*").unconditional


@given(st.text(max_size=40) | st.text("bytes=-0123,", max_size=20).map("bytes={}".format))
def test_any_header_gives_a_part_or_the_whole_or_an_error(header: str) -> None:
    try:
        part = Wanted(header, None, header).of(STAT)
    except RangeNotSatisfiable:
        return
    assert part is None or (part and 0 <= part.start < part.stop <= 100)
