"""The form parser: valid forms yield their bundle and others are refused, in any chunks."""

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
CONTENT_TYPE = b"multipart/form-data; boundary=" + BOUNDARY


def part(name: str, content: bytes, suffix: str = "") -> bytes:
    """Return a part. `suffix` follows the name in the Content-Disposition header."""
    headers = f'Content-Disposition: form-data; name="{name}"{suffix}\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + headers + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def parse(body: bytes, cuts: Iterable[int], content_type: bytes = CONTENT_TYPE) -> bytes:
    """Return the bundle in a form whose body arrives in chunks that end at these positions."""

    async def run() -> bytes:
        async def chunks() -> AsyncIterator[bytes]:
            ends = {0, *(cut % (len(body) + 1) for cut in cuts), len(body)}
            for start, end in pairwise(sorted(ends)):
                yield body[start:end]

        return b"".join([data async for data in file_part(chunks(), content_type)])

    return asyncio.run(run())


BOUNDARIES = st.sampled_from([BOUNDARY, b"b", b"-" * 70, b"ab" * 20]) | st.text(
    "0123456789abcxyzABCXYZ'()+_,-./:=? ", max_size=70
).map(lambda text: text.rstrip().encode() or b"-")
"""Boundaries that RFC 2046, section 5.1.1 allows."""

CUTS = st.just(range(10_000)) | st.lists(st.integers(0, 10_000), max_size=30)
"""Chunks of one byte, or chunks of any size."""

SEEDS = st.tuples(st.booleans(), st.binary(max_size=40))
"""Whether the content of a part resembles a delimiter, and bytes to make the content from."""

SEMICOLONS = (b";", b"; ", b" ;\t")


def part_content(seed: tuple[bool, bytes], boundary: bytes) -> bytes:
    """Return any bytes, or bytes that resemble a delimiter without containing one."""
    resembles_delimiter, content = seed
    delimiter = b"\r\n--" + boundary
    ends = range(1, len(delimiter))
    fragments = [
        b"\r",
        b"--\r\n",
        *(delimiter[:end] for end in ends),
        *(delimiter[end:] for end in ends),
    ]
    if not resembles_delimiter:
        return content
    return b"".join(fragments[byte % len(fragments)] for byte in content)


def spellings(name: bytes) -> tuple[bytes, ...]:
    return (name, name.lower(), name.upper())


def part_headers(*names: bytes) -> list[bytes]:
    """Return the headers of a part with each name, in many spellings that RFC 7578 allows."""
    dispositions = [
        semicolon.join((form_data, *order))
        for name in names
        for filename in ((), (b"filename=f",), (b'filename="; name=x"',))
        for order in permutations((b"name=" + name, *filename))
        for form_data in (b"form-data", b"FORM-Data")
        for semicolon in SEMICOLONS
    ]
    return [
        first + name + colon + disposition + last + b"\r\n\r\n"
        for first in (b"", b"X-Other:\r\n")
        for name in spellings(b"Content-Disposition")
        for colon in (b":", b": ")
        for disposition in dispositions
        for last in (b"", b"\r\nContent-Type: text/plain; name=file", b"\r\na:b:c")
    ]


FILE_PARTS = st.tuples(st.sampled_from(part_headers(b"file", b'"file"')), SEEDS)
OTHER_PARTS = st.lists(
    st.tuples(st.sampled_from(part_headers(b"files", b'""', b'"; name=file"')), SEEDS),
    max_size=2,
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
    """Return a form's Content-Type, its body, and the bundle in it."""
    boundary = draw(BOUNDARIES)
    delimiter = b"\r\n--" + boundary
    headers, seed = draw(FILE_PARTS)
    bundle = part_content(seed, boundary)
    parts = [
        other_headers + part_content(seed, boundary) for other_headers, seed in draw(OTHER_PARTS)
    ]
    parts.insert(draw(st.integers(0, len(parts))), headers + bundle)
    assume(not any(delimiter in part for part in parts))
    body = (delimiter + draw(st.sampled_from([b"\r\n", b"\t \r\n"]))).join(parts)
    preamble = draw(st.sampled_from([b"", b"\r\n", b"\n"]))
    epilogue = draw(st.sampled_from([b"", b"\r\n", delimiter + b"\r\nan epilogue"]))
    body = preamble + delimiter[2:] + b"\r\n" + body + delimiter + b"--" + epilogue
    parameter = boundary if boundary.isalnum() and draw(st.booleans()) else b'"%b"' % boundary
    return draw(CONTENT_TYPES).replace(b"%b", parameter), body, bundle


@fuzz(forms(), CUTS)
def test_form_in_any_spelling_and_chunks_yields_the_bundle(
    form: tuple[bytes, bytes, bytes], cuts: list[int]
) -> None:
    content_type, body, bundle = form
    assert is_form(content_type)
    assert parse(body, cuts, content_type) == bundle


@fuzz(BOUNDARIES, SEEDS, SEEDS, st.text(max_size=20), CUTS)
def test_form_written_by_httpx_yields_the_bundle(
    boundary: bytes,
    bundle_seed: tuple[bool, bytes],
    note_seed: tuple[bool, bytes],
    filename: str,
    cuts: list[int],
) -> None:
    bundle, note = part_content(bundle_seed, boundary), part_content(note_seed, boundary)
    assume(not any(b"\r\n--" + boundary in b"\r\n" + content for content in (bundle, note)))
    content_type = b'multipart/form-data; boundary="%b"' % boundary
    request = httpx.Request(
        "POST",
        "http://x",
        headers={"Content-Type": content_type.decode()},
        data={"note": note},
        files={"file": (filename, bundle)},
    )
    assert parse(request.read(), cuts, content_type) == bundle


def parse_or_refuse(body: bytes, cuts: Iterable[int], content_type: bytes) -> bytes | None:
    """Return the bundle, or None if the form is malformed."""
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
"""Changes to a body: a position, a length, and a replacement; with None the bytes are doubled."""


@fuzz(forms(), DAMAGE, CUTS, examples=60)
def test_result_of_a_damaged_form_does_not_depend_on_the_chunks(
    form: tuple[bytes, bytes, bytes], damage: list[tuple[int, int, bytes | None]], cuts: list[int]
) -> None:
    content_type, body, _ = form
    for position, length, replacement in damage:
        start = position % (len(body) + 1)
        damaged = body[start : start + length] * 2 if replacement is None else replacement
        body = body[:start] + damaged + body[start + length :]
    assert parse_or_refuse(body, cuts, content_type) == parse_or_refuse(body, [], content_type)


@fuzz(st.binary(max_size=80) | st.text('boundary="=;\\ \t').map(str.encode))
def test_any_content_type_is_parsed_or_refused(content_type: bytes) -> None:
    is_form(content_type)
    parse_or_refuse(form(part("file", b"bundle")), [], b"multipart/form-data;" + content_type)


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
def test_valid_form_yields_the_bundle(body: bytes) -> None:
    assert parse(body, []) == b"bundle"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(), CONTENT_TYPE),
        (form(part("other", b"bundle")), CONTENT_TYPE),
        (form(part("other", b"bundle", '; filename="file"')), CONTENT_TYPE),
        (form(part("file", b"one"), part("file", b"two")), CONTENT_TYPE),
        (form(part("file", b""), part("file", b"")), CONTENT_TYPE),
        (part("file", b"without a closing boundary"), CONTENT_TYPE),
        (b"", CONTENT_TYPE),
        (b"not a form", CONTENT_TYPE),
        (form(part("file", b"bundle")), b"multipart/form-data"),
        (form(part("file", b"bundle")), b"multipart/form-data; boundary=" + b"b" * 300),
        (form(part("file", b"bundle")), b"multipart/form-data; boundary=another"),
    ],
)
def test_invalid_form_is_refused(body: bytes, content_type: bytes) -> None:
    with pytest.raises(MalformedForm):
        parse(body, [], content_type)


def test_form_with_too_many_bytes_besides_its_file_is_refused() -> None:
    file = part("file", b"bundle")
    for body in (
        form(part("padding", b"x" * MAX_OVERHEAD), file),
        form(*[part("padding", b"x")] * 2000, file),
        form(file) + b"x" * MAX_OVERHEAD,
    ):
        with pytest.raises(MalformedForm, match="besides its file"):
            parse(body, [])


def test_bundle_full_of_the_boundary_is_refused_early() -> None:
    """The parser takes a microsecond per boundary byte, half a second for a MiB of this bundle."""
    body = form(part("file", b"\r\n--%b-" % BOUNDARY * MAX_OVERHEAD))[: 2 * MAX_OVERHEAD]
    with pytest.raises(MalformedForm, match="contains its boundary too many times"):
        parse(body, [])
    with pytest.raises(MalformedForm, match="closing boundary"):
        parse(body[: MAX_OVERHEAD // 2], [])


def test_very_long_content_type_is_refused() -> None:
    with pytest.raises(MalformedForm, match="Content-Type"):
        parse(form(part("file", b"bundle")), [], CONTENT_TYPE + b";" * 60_000)


@pytest.mark.parametrize("cuts", [[], [2]])
def test_text_before_the_first_boundary_is_refused(cuts: list[int]) -> None:
    with pytest.raises(MalformedForm):
        parse(b"\r\na preamble" + form(part("file", b"bundle")), cuts)


@fuzz(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=5))
def test_random_bytes_are_refused(garbage: bytes, cuts: list[int]) -> None:
    with pytest.raises(MalformedForm):
        parse(b"--" + BOUNDARY + b"\r\n" + garbage, cuts)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (CONTENT_TYPE, True),
        (b"Multipart/Form-Data; boundary=x", True),
        (b"multipart/form-data", True),
        (b"multipart/mixed; boundary=x", False),
        (b"application/x-www-form-urlencoded", False),
        (b"text/plain; charset=utf-8", False),
        (b"", False),
        (b"\xff;;;=", False),
    ],
)
def test_only_multipart_form_data_is_a_form(content_type: bytes, expected: bool) -> None:  # noqa: FBT001
    assert is_form(content_type) is expected
