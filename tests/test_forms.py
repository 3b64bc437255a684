"""The form parser: what it yields however the body is cut, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import MalformedForm
from service.forms import ENVELOPE, file_part, is_form

BOUNDARY = b"----boundary"
TYPE = b"multipart/form-data; boundary=" + BOUNDARY


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def parse(body: bytes, cuts: list[int], content_type: bytes = TYPE) -> bytes:
    async def run() -> bytes:
        async def chunks() -> AsyncIterator[bytes]:
            edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
            for start, end in pairwise(edges):
                yield body[start:end]

        return b"".join([data async for data in file_part(chunks(), content_type)])

    return asyncio.run(run())


VALUES = st.binary(max_size=300) | st.lists(
    st.sampled_from([b"\r\n", b"--", b"-", b"\r", b"\n", BOUNDARY, b"\r\n--", b"x"]), max_size=20
).map(b"".join)


@given(
    VALUES.filter(lambda value: b"\r\n--" + BOUNDARY not in b"\r\n" + value),
    st.lists(st.integers(0, 5000), max_size=30),
)
def test_however_it_is_cut(value: bytes, cuts: list[int]) -> None:
    body = form(part("note", b"a"), part("file", value, '; filename="f"'), part("more", b"b"))
    assert parse(body, cuts) == value


@pytest.mark.parametrize(
    "body",
    [
        form(part("file", b"bundle")),
        form(part("file", b"bundle")) + b"an epilogue",
        b"\r\n" + form(part("file", b"bundle")),
        form(part("file", b"bundle", '; filename="file"\r\nContent-Type: text/plain')),
        form(part("file", b"bundle")).replace(b"Content-Disposition", b"CONTENT-disposition"),
    ],
)
def test_a_form(body: bytes) -> None:
    assert parse(body, []) == b"bundle"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(), TYPE),
        (form(part("other", b"bundle")), TYPE),
        (form(part("other", b"bundle", '; filename="file"')), TYPE),
        (form(part("file", b"one"), part("file", b"two")), TYPE),
        (form(part("file", b""), part("file", b"")), TYPE),
        (part("file", b"cut before the end"), TYPE),
        (b"", TYPE),
        (b"no form at all", TYPE),
        (form(part("file", b"bundle")), b"multipart/form-data"),
        (form(part("file", b"bundle")), b"multipart/form-data; boundary=" + b"b" * 300),
        (form(part("file", b"bundle")), b"multipart/form-data; boundary=another"),
        (form(part("padding", b"x" * ENVELOPE), part("file", b"bundle")), TYPE),
        (form(*[part("padding", b"x")] * 2000, part("file", b"bundle")), TYPE),
        (form(part("file", b"bundle")) + b"x" * ENVELOPE, TYPE),
    ],
)
def test_refused(body: bytes, content_type: bytes) -> None:
    with pytest.raises(MalformedForm):
        parse(body, [], content_type)


def test_a_bundle_full_of_the_boundary_is_refused_before_it_costs_much() -> None:
    """The parser takes a microsecond over each: half a second for a MiB of this one."""
    refused = form(part("file", b"\r\n--%b-" % BOUNDARY * ENVELOPE))[: 2 * ENVELOPE]
    with pytest.raises(MalformedForm, match="full of its boundary"):
        parse(refused, [])
    with pytest.raises(MalformedForm, match="closing boundary"):
        parse(refused[: ENVELOPE // 2], [])


def test_a_content_type_without_end_is_refused() -> None:
    with pytest.raises(MalformedForm, match="Content-Type"):
        parse(form(part("file", b"bundle")), [], TYPE + b";" * 60_000)


@pytest.mark.parametrize("cuts", [[], [2]])
def test_what_follows_an_empty_line_is_no_form_however_it_is_cut(cuts: list[int]) -> None:
    with pytest.raises(MalformedForm):
        parse(b"\r\na preamble" + form(part("file", b"bundle")), cuts)


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=5))
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes, cuts: list[int]) -> None:
    with pytest.raises(MalformedForm):
        parse(b"--" + BOUNDARY + b"\r\n" + garbage, cuts)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (TYPE, True),
        (b"Multipart/Form-Data; boundary=x", True),
        (b"multipart/form-data", True),
        (b"multipart/mixed; boundary=x", False),
        (b"application/x-www-form-urlencoded", False),
        (b"text/plain; charset=utf-8", False),
        (b"", False),
        (b"\xff;;;=", False),
    ],
)
def test_is_form(content_type: bytes, expected: bool) -> None:  # noqa: FBT001
    assert is_form(content_type) is expected
