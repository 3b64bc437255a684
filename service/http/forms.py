"""multipart/form-data (RFC 7578) as a stream of the part named `file`, without buffering it.

`routes` wraps the body of an upload in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.errors import MalformedForm

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_OVERHEAD = 64 * 1024
"""Bytes that a form may have besides its bundle: boundaries, part headers and other parts."""

MAX_BOUNDARY = 70
"""The maximum length of a boundary in bytes (RFC 2046, section 5.1.1)."""

MAX_CONTENT_TYPE = 1024
"""The maximum length of a form's Content-Type in bytes, so that parsing it is cheap."""

_FIELD = b"file"


def is_form(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip(b" \t").lower() == b"multipart/form-data"


async def file_part(chunks: AsyncIterator[bytes], content_type: bytes) -> AsyncIterator[bytes]:
    """Yield the bytes of the part named `file` as they arrive.

    Raises `MalformedForm` if there is no such part or a second one, if the body is not a valid
    form, if it ends before its closing boundary, or if it has more than `MAX_OVERHEAD` bytes
    besides the part. The error may come after the last byte: then the caller has to discard what
    it received.
    """
    form = _Form(content_type)
    async for chunk in chunks:
        for data in form.feed(chunk):
            yield data
    form.end()


class _Form:
    """Collects the data that python-multipart passes to its callbacks."""

    def __init__(self, content_type: bytes) -> None:
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_header_begin": self._header_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }
        if len(content_type) > MAX_CONTENT_TYPE:
            raise MalformedForm(
                f"The form's Content-Type header is longer than {MAX_CONTENT_TYPE} bytes: send a "
                "shorter one."
            )
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary or len(boundary) > MAX_BOUNDARY:
            raise MalformedForm(
                f"The form's Content-Type header has no boundary of 1 to {MAX_BOUNDARY} bytes: "
                "send one."
            )
        self._parser = MultipartParser(boundary, callbacks)
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = 0
        self._data: list[bytes] = []
        self._name = self._value = b""
        self._started = self._in_file = self._has_file = self._ended = False
        self._overhead = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Parse a chunk; return the bytes of the bundle in it."""
        self._data = []
        self._overhead += len(chunk)
        if not self._started:
            # After an empty line, the parser would skip everything else in the same chunk.
            chunk = chunk.lstrip(b"\r\n")
            self._started = bool(chunk)
        # The parser processes each delimiter byte by byte, at a microsecond per byte.
        self._delimiters += chunk.count(self._delimiter)
        if self._delimiters * len(self._delimiter) > MAX_OVERHEAD:
            raise MalformedForm(
                "The form contains its boundary too many times: choose a boundary that the "
                "bundle does not contain."
            )
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedForm(
                "The body is not valid multipart/form-data (RFC 7578): correct the form, or send "
                "the bundle alone with another Content-Type."
            ) from error
        self._overhead -= sum(map(len, self._data))
        if self._overhead > MAX_OVERHEAD:
            raise MalformedForm(
                f"The form has more than {MAX_OVERHEAD} bytes besides its file: remove the other "
                "parts."
            )
        return self._data

    def end(self) -> None:
        if not self._ended:
            raise MalformedForm(
                "The form ends before its closing boundary: send the whole form again."
            )
        if not self._has_file:
            raise MalformedForm(
                'The form has no part named "file": send the bundle in a part with this name.'
            )

    def _part_begin(self) -> None:
        self._in_file = False

    def _header_begin(self) -> None:
        self._name = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            disposition, options = parse_options_header(self._value)
            self._in_file = disposition == b"form-data" and options.get(b"name") == _FIELD

    def _headers_finished(self) -> None:
        if self._in_file and self._has_file:
            raise MalformedForm(
                'The form has more than one part named "file": send one bundle per upload.'
            )
        self._has_file = self._has_file or self._in_file

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])

    def _end(self) -> None:
        self._ended = True
