"""Byte ranges and conditional requests of RFC 9110, without a server."""

from email.utils import formatdate

import pytest
from hypothesis import strategies as st

from service.bundles.ranges import ObjectStat, RangeRequest
from service.errors import PreconditionFailed, RangeNotSatisfiable
from tests.support.fuzz import fuzz

STAT = ObjectStat(size=100, etag='"etag"', modified_at=784_111_777.25)
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
    # Several ranges, or a malformed one: the whole bundle.
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
def test_range_header_selects_bytes(header: str, expected: range | None) -> None:
    assert RangeRequest(header).select(STAT) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=999-"])
def test_range_that_selects_no_bytes_is_not_satisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as error:
        RangeRequest(header).select(STAT)
    assert error.value.size == 100


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
def test_if_range_decides_whether_the_range_applies(if_range: str, *, holds: bool) -> None:
    assert RangeRequest("bytes=1-2", if_range=if_range).select(STAT) == (
        range(1, 3) if holds else WHOLE
    )


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
def test_if_match_decides_whether_the_request_succeeds(if_match: str, *, holds: bool) -> None:
    request = RangeRequest("bytes=1-2", if_match)
    if holds:
        assert request.select(STAT) == range(1, 3)
    else:
        with pytest.raises(PreconditionFailed):
            request.select(STAT)


def test_request_without_range_or_if_match_is_unconditional() -> None:
    assert RangeRequest().unconditional
    assert RangeRequest(if_range=DATE).unconditional
    assert not RangeRequest("bytes=0-").unconditional
    assert not RangeRequest(if_match="*").unconditional


POSITIONS = st.integers(0, 12) | st.integers(0, 10**40)
SPECS = st.tuples(POSITIONS, POSITIONS | st.none()) | st.tuples(st.none(), POSITIONS)
"""The first and last position of an int-range (the last may be absent), or a suffix length."""


def selected_positions(first: int | None, last: int | None, size: int) -> list[int] | None:
    """Select positions one by one, as RFC 9110, section 14.1.2, says. `None` if invalid."""
    positions = list(range(size))
    if first is None:
        return [position for position in positions if position >= size - (last or 0)]
    if last is None:
        return [position for position in positions if position >= first]
    return (
        None if last < first else [position for position in positions if first <= position <= last]
    )


@fuzz(
    st.integers(1, 12),
    st.lists(SPECS, min_size=1, max_size=2),
    st.sampled_from(["bytes", "Bytes", "BYTES"]),
    st.sampled_from([",", ", ", " ,\t"]),
    examples=100,
)
def test_range_header_is_parsed_as_in_rfc_9110(
    size: int, specs: list[tuple[int | None, int | None]], unit: str, separator: str
) -> None:
    header = separator.join(
        "-".join("" if position is None else str(position) for position in spec) for spec in specs
    )
    try:
        part = RangeRequest(f"{unit}={header}").select(ObjectStat(size, '"etag"', 0))
    except RangeNotSatisfiable:
        part = range(0)
    expected = selected_positions(*specs[0], size) if len(specs) == 1 else WHOLE
    assert (None if part is None else list(part)) == expected


@fuzz(st.text(max_size=40) | st.text("bytes=-0123, \t", max_size=20).map("bytes={}".format))
def test_any_range_header_selects_a_part_or_the_whole_or_is_refused(header: str) -> None:
    try:
        part = RangeRequest(header, None, None).select(STAT)
    except RangeNotSatisfiable:
        return
    assert part is None or (part and 0 <= part.start < part.stop <= 100)


CHARACTERS = "!#$%,;*W/ez~\\\xe9"
TAGS = st.lists(
    st.tuples(
        st.sampled_from(["", "", "W/"]),
        st.sampled_from(["etag", ""]) | st.text(CHARACTERS, max_size=6),
        st.sampled_from([",", ", ", " ,\t", ", ,"]),
    ),
    min_size=1,
    max_size=4,
)


@fuzz(TAGS)
def test_if_match_is_parsed_as_in_rfc_9110(tags: list[tuple[str, str, str]]) -> None:
    """The header is a list of entity tags (section 8.8.3). Empty elements are ignored."""
    header = "".join(f'{weak}"{opaque}"{separator}' for weak, opaque, separator in tags)
    for etag in {opaque for _, opaque, _ in tags} | {"etag"}:
        holds = ("", etag) in {(weak, opaque) for weak, opaque, _ in tags}
        try:
            RangeRequest(if_match=header).select(ObjectStat(100, f'"{etag}"', 0))
        except PreconditionFailed:
            assert not holds
        else:
            assert holds


@fuzz(st.text(max_size=40), st.floats(0, 4e9))
def test_arbitrary_text_never_satisfies_a_condition(header: str, modified_at: float) -> None:
    stat = ObjectStat(100, '"etag"', modified_at)
    assert RangeRequest("bytes=0-0", if_range=header).select(stat) is WHOLE
    date = formatdate(modified_at, usegmt=True)
    assert RangeRequest("bytes=0-0", if_range=date).select(stat) == range(1)
    if header.strip() != "*":
        with pytest.raises(PreconditionFailed):
            RangeRequest(if_match=header).select(stat)
