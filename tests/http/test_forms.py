"""The form parser: what it yields however the body is cut, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise, permutations

import httpx
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from service.errors import MalformedForm
from service.http.forms import MAX_OVERHEAD, file_part, is_form
from tests.support.fuzz import fuzz

BOUNDARY = b"----boundary"
TYPE = b"multipart/form-data; boundary=" + BOUNDARY


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def parse(body: bytes, cuts: Iterable[int], content_type: bytes = TYPE) -> bytes:
    async def run() -> bytes:
        async def chunks() -> AsyncIterator[bytes]:
            edges = {0, *(cut % (len(body) + 1) for cut in cuts), len(body)}
            for start, end in pairwise(sorted(edges)):
                yield body[start:end]

        return b"".join([data async for data in file_part(chunks(), content_type)])

    return asyncio.run(run())


BOUNDARIES = st.sampled_from([BOUNDARY, b"b", b"-" * 70, b"ab" * 20]) | st.text(
    "0123456789abcxyzABCXYZ'()+_,-./:=? ", max_size=70
).map(lambda text: text.rstrip().encode() or b"-")
"""What RFC 2046, section 5.1.1 allows."""

CUTS = st.just(range(10_000)) | st.lists(st.integers(0, 10_000), max_size=30)
"""After every byte, or anywhere."""

SEEDS = st.tuples(st.booleans(), st.binary(max_size=40))
SEMICOLONS = (b";", b"; ", b" ;\t")


def value(seed: tuple[bool, bytes], boundary: bytes) -> bytes:
    """Any bytes, or what looks most like a delimiter without being one."""
    near, content = seed
    delimiter = b"\r\n--" + boundary
    ends = range(1, len(delimiter))
    pieces = [
        b"\r",
        b"--\r\n",
        *(delimiter[:end] for end in ends),
        *(delimiter[end:] for end in ends),
    ]
    return b"".join(pieces[byte % len(pieces)] for byte in content) if near else content


def spellings(word: bytes) -> tuple[bytes, ...]:
    return (word, word.lower(), word.upper())


def heads(*names: bytes) -> list[bytes]:
    """The headers of a part in many spellings that RFC 7578 allows."""
    dispositions = [
        semicolon.join((form_data, *order))
        for name in names
        for filename in ((), (b"filename=f",), (b'filename="; name=x"',))
        for order in permutations((b"name=" + name, *filename))
        for form_data in (b"form-data", b"FORM-Data")
        for semicolon in SEMICOLONS
    ]
    return [
        before + name + colon + disposition + after + b"\r\n\r\n"
        for before in (b"", b"X-Other:\r\n")
        for name in spellings(b"Content-Disposition")
        for colon in (b":", b": ")
        for disposition in dispositions
        for after in (b"", b"\r\nContent-Type: text/plain; name=file", b"\r\na:b:c")
    ]


FILES = st.tuples(st.sampled_from(heads(b"file", b'"file"')), SEEDS)
OTHERS = st.lists(
    st.tuples(st.sampled_from(heads(b"files", b'""', b'"; name=file"')), SEEDS), max_size=2
)
CONTENT_TYPES = st.sampled_from(
    [
        semicolon.join((form_data, *order))
        for semicolon in SEMICOLONS
        for form_data in spellings(b"multipart/Form-Data")
        for name in spellings(b"Boundary")
        for order in permutations((name + b"=%b", b"charset=utf-8", b'x="; boundary=y"'))
    ]
)


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """A form's Content-Type, its body, and the bundle in it."""
    boundary = draw(BOUNDARIES)
    delimiter = b"\r\n--" + boundary
    head, seed = draw(FILES)
    bundle = value(seed, boundary)
    parts = [other + value(seed, boundary) for other, seed in draw(OTHERS)]
    parts.insert(draw(st.integers(0, len(parts))), head + bundle)
    assume(not any(delimiter in part for part in parts))
    body = (delimiter + draw(st.sampled_from([b"\r\n", b"\t \r\n"]))).join(parts)
    before = draw(st.sampled_from([b"", b"\r\n", b"\n"]))
    after = draw(st.sampled_from([b"", b"\r\n", delimiter + b"\r\nan epilogue"]))
    body = before + delimiter[2:] + b"\r\n" + body + delimiter + b"--" + after
    quoted = boundary if boundary.isalnum() and draw(st.booleans()) else b'"%b"' % boundary
    return draw(CONTENT_TYPES).replace(b"%b", quoted), body, bundle


@fuzz(forms(), CUTS)
def test_however_it_is_spelled_and_cut(form: tuple[bytes, bytes, bytes], cuts: list[int]) -> None:
    content_type, body, bundle = form
    assert is_form(content_type)
    assert parse(body, cuts, content_type) == bundle


@fuzz(BOUNDARIES, SEEDS, SEEDS, st.text(max_size=20), CUTS)
def test_what_another_program_writes(
    boundary: bytes, seed: tuple[bool, bytes], other: tuple[bool, bytes], name: str, cuts: list[int]
) -> None:
    bundle, note = value(seed, boundary), value(other, boundary)
    assume(not any(b"\r\n--" + boundary in b"\r\n" + content for content in (bundle, note)))
    content_type = b'multipart/form-data; boundary="%b"' % boundary
    request = httpx.Request(
        "POST",
        "http://x",
        headers={"Content-Type": content_type.decode()},
        data={"note": note},
        files={"file": (name, bundle)},
    )
    assert parse(request.read(), cuts, content_type) == bundle


def outcome(body: bytes, cuts: Iterable[int], content_type: bytes) -> bytes | None:
    try:
        return parse(body, cuts, content_type)
    except MalformedForm:
        return None


DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 1000),
        st.integers(0, 80),
        st.none()
        | st.binary(max_size=3)
        | st.sampled_from([b"\r\n", b"\r", b"--", b":", b'"', b"\\"]),
    ),
    min_size=1,
    max_size=4,
)


@fuzz(forms(), DAMAGE, CUTS, examples=60)
def test_a_damaged_form_is_read_or_refused_however_it_is_cut(
    form: tuple[bytes, bytes, bytes], damage: list[tuple[int, int, bytes | None]], cuts: list[int]
) -> None:
    """With bytes changed, cut out, doubled or put in."""
    content_type, body, _ = form
    for place, length, put in damage:
        start = place % (len(body) + 1)
        found = body[start : start + length]
        body = body[:start] + (found * 2 if put is None else put) + body[start + length :]
    assert outcome(body, cuts, content_type) == outcome(body, [], content_type)


@fuzz(st.binary(max_size=80) | st.text('boundary="=;\\ \t').map(str.encode))
def test_any_content_type_is_read_or_refused(content_type: bytes) -> None:
    is_form(content_type)
    outcome(form(part("file", b"bundle")), [], b"multipart/form-data;" + content_type)


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
    ],
)
def test_refused(body: bytes, content_type: bytes) -> None:
    with pytest.raises(MalformedForm):
        parse(body, [], content_type)


def test_more_around_the_bundle_than_the_envelope_holds_is_refused() -> None:
    bundle = part("file", b"bundle")
    for body in (
        form(part("padding", b"x" * MAX_OVERHEAD), bundle),
        form(*[part("padding", b"x")] * 2000, bundle),
        form(bundle) + b"x" * MAX_OVERHEAD,
    ):
        with pytest.raises(MalformedForm, match="besides its file"):
            parse(body, [])


def test_a_bundle_full_of_the_boundary_is_refused_before_it_costs_much() -> None:
    """The parser takes a microsecond over each: half a second for a MiB of this one."""
    refused = form(part("file", b"\r\n--%b-" % BOUNDARY * MAX_OVERHEAD))[: 2 * MAX_OVERHEAD]
    with pytest.raises(MalformedForm, match="contains its boundary too many times"):
        parse(refused, [])
    with pytest.raises(MalformedForm, match="closing boundary"):
        parse(refused[: MAX_OVERHEAD // 2], [])


def test_a_content_type_without_end_is_refused() -> None:
    with pytest.raises(MalformedForm, match="Content-Type"):
        parse(form(part("file", b"bundle")), [], TYPE + b";" * 60_000)


@pytest.mark.parametrize("cuts", [[], [2]])
def test_what_follows_an_empty_line_is_no_form_however_it_is_cut(cuts: list[int]) -> None:
    with pytest.raises(MalformedForm):
        parse(b"\r\na preamble" + form(part("file", b"bundle")), cuts)


@fuzz(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=5))
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
