"""multipart/form-data (RFC 7578) as a stream: the part named `file`, nothing held or spooled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.errors import MalformedForm

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

ENVELOPE = 64 * 1024
"""Bytes that a form may hold around its bundle: boundaries, part headers and other parts."""

MAX_BOUNDARY = 70
"""Bytes of a boundary (RFC 2046, section 5.1.1)."""

MAX_CONTENT_TYPE = 1024
"""Bytes of a form's Content-Type: more than any client sends, yet taken apart in no time."""

_FIELD = b"file"


def is_form(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip(b" \t").lower() == b"multipart/form-data"


async def file_part(chunks: AsyncIterator[bytes], content_type: bytes) -> AsyncIterator[bytes]:
    """Yield the bytes of the part named `file` as they arrive.

    Raises `MalformedForm` where there is no such part or a second one, where the body breaks the
    format or ends before its closing boundary, or where more than `ENVELOPE` lies around the part.
    As that may show only at the end, what was yielded before is not to be used then.
    """
    form = _Form(content_type)
    async for chunk in chunks:
        for data in form.feed(chunk):
            yield data
    form.end()


class _Form:
    """python-multipart's callbacks, turned into the data they leave behind."""

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
            raise MalformedForm(f"The form's Content-Type is over {MAX_CONTENT_TYPE} bytes long.")
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary or len(boundary) > MAX_BOUNDARY:
            raise MalformedForm("The form's Content-Type has no usable boundary.")
        self._parser = MultipartParser(boundary, callbacks)
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = 0
        self._data: list[bytes] = []
        self._name = self._value = b""
        self._begun = self._in_file = self._seen = self._ended = False
        self._around = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Parse a chunk; what of the bundle came with it."""
        self._data = []
        self._around += len(chunk)
        if not self._begun:
            # After an empty line the parser skips anything, as far as it is in the same chunk.
            chunk = chunk.lstrip(b"\r\n")
            self._begun = bool(chunk)
        # Where one is, the parser goes on byte by byte: in a bundle each costs a microsecond.
        self._delimiters += chunk.count(self._delimiter)
        if self._delimiters * len(self._delimiter) > ENVELOPE:
            raise MalformedForm("The form's file is full of its boundary: choose another one.")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedForm("The form is not multipart/form-data (RFC 7578).") from error
        self._around -= sum(map(len, self._data))
        if self._around > ENVELOPE:
            raise MalformedForm(f"The form holds over {ENVELOPE} bytes beside its file.")
        return self._data

    def end(self) -> None:
        if not self._ended:
            raise MalformedForm("The form ends before its closing boundary.")
        if not self._seen:
            raise MalformedForm('The form has no part named "file": send the bundle as that.')

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
        if self._in_file and self._seen:
            raise MalformedForm('The form has two parts named "file": send one bundle a time.')
        self._seen = self._seen or self._in_file

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])

    def _end(self) -> None:
        self._ended = True
