"""Byte ranges and conditional requests (RFC 9110, sections 13 and 14). Pure.

`http.routes` creates a `RangeRequest` from the headers, and `service` applies it to the object.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate

from service.errors import PreconditionFailed, RangeNotSatisfiable

_ENTITY_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_BYTE_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,99})-([0-9]{0,99})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """An S3 object: `size` in bytes, `etag` with quotes, `modified_at` in Unix seconds.

    `fields` are those of the bundle's record, if they are in the object's metadata.
    """

    size: int
    etag: str
    modified_at: float
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """The headers `Range`, `If-Match` and `If-Range` of a request, unparsed."""

    ranges: str | None = None
    if_match: str | None = None
    if_range: str | None = None

    @property
    def unconditional(self) -> bool:
        """Whether the request is for the whole bundle without a condition."""
        return self.ranges is None and self.if_match is None

    def select(self, stat: ObjectStat) -> range | None:
        """Return the requested bytes of this object, or `None` for all of them.

        Raises `PreconditionFailed`, and `RangeNotSatisfiable` if the object has no such bytes. A
        `Range` is ignored if it is malformed, has another unit, or has more than one range, or if
        `If-Range` names another version.
        """
        if self.if_match is not None and not _matches(self.if_match, stat.etag):
            raise PreconditionFailed
        if self.ranges is None or not self._range_applies(stat):
            return None
        match = _BYTE_RANGE.fullmatch(self.ranges)
        if match is None or match.group(1, 2) == ("", ""):
            return None
        first, last = match.groups()
        if not first:
            selected = range(max(stat.size - int(last), 0), stat.size)
        elif last and int(last) < int(first):
            return None
        else:
            selected = range(int(first), min(int(last) + 1, stat.size) if last else stat.size)
        if not selected:
            raise RangeNotSatisfiable(stat.size)
        return selected

    def _range_applies(self, stat: ObjectStat) -> bool:
        """Return whether `If-Range` equals the `ETag` or the `Last-Modified` of this version."""
        modified = formatdate(stat.modified_at, usegmt=True)
        return self.if_range in {None, stat.etag, modified}


def _matches(if_match: str, etag: str) -> bool:
    """Compare strongly (RFC 9110, section 8.8.3.2): a weak entity tag matches nothing."""
    return if_match.strip() == "*" or etag in _ENTITY_TAG.findall(if_match)
