"""Which part of a bundle is wanted, and on what condition (RFC 9110, sections 13 and 14). Pure."""

import re
from dataclasses import dataclass
from email.utils import formatdate

from service.errors import PreconditionFailed, RangeNotSatisfiable

_ENTITY_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_BYTE_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,99})-([0-9]{0,99})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stat:
    """What S3 knows of an object: `size` in bytes, `etag` in quotes, `modified_at` in Unix time."""

    size: int
    etag: str
    modified_at: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """The headers `Range`, `If-Match` and `If-Range` of a request, as they came."""

    ranges: str | None = None
    if_match: str | None = None
    if_range: str | None = None

    @property
    def unconditional(self) -> bool:
        """Whether everything is wanted, whatever the bundle may be."""
        return self.ranges is None and self.if_match is None

    def of(self, stat: Stat) -> range | None:
        """The wanted bytes of this object, or `None` for all of them.

        Raises `PreconditionFailed`, and `RangeNotSatisfiable` where there are none. A `Range` that
        is malformed, in another unit, or more than one range is ignored, as is one whose
        `If-Range` names another version.
        """
        if self.if_match is not None and not _matches(self.if_match, stat.etag):
            raise PreconditionFailed
        if self.ranges is None or not self._in_range(stat):
            return None
        found = _BYTE_RANGE.fullmatch(self.ranges)
        if found is None or found.group(1, 2) == ("", ""):
            return None
        first, last = found.groups()
        if not first:
            wanted = range(max(stat.size - int(last), 0), stat.size)
        elif last and int(last) < int(first):
            return None
        else:
            wanted = range(int(first), min(int(last) + 1, stat.size) if last else stat.size)
        if not wanted:
            raise RangeNotSatisfiable(stat.size)
        return wanted

    def _in_range(self, stat: Stat) -> bool:
        """Whether `If-Range` is this version's `ETag`, or its `Last-Modified` to the letter."""
        modified = formatdate(stat.modified_at, usegmt=True)
        return self.if_range in {None, stat.etag, modified}


def _matches(if_match: str, etag: str) -> bool:
    """The strong comparison of RFC 9110, section 8.8.3.2: a weak entity tag matches nothing."""
    return if_match.strip() == "*" or etag in _ENTITY_TAG.findall(if_match)
