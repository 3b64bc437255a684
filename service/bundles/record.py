"""A bundle's record, which S3 keeps beside its object, and when the bundle expires. Pure.

`proof` creates the record of an upload from its claims, and `access` reads it for every other
request.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

DAY = 86_400

LAST_SECOND = 253_402_300_799
"""The last second of the year 9999. No later time can be written as a date."""

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """What the service knows about a bundle.

    `expires_at` is in Unix seconds. `size` is in bytes, and `None` if it was not known before the
    first byte was stored. `sha256`, `hmac` and `receipt` are 64 lower-case hex digits; `sha256` and
    `hmac` are `None` if the upload claimed none. Only a record with an `hmac` can have a `receipt`.
    A field of the wrong form raises `ValueError`.
    """

    expires_at: int
    size: int | None = None
    sha256: str | None = None
    hmac: str | None = None
    receipt: str | None = None

    def __post_init__(self) -> None:
        if self.expires_at > LAST_SECOND:
            raise ValueError("an expiry time after the year 9999")
        for digest in (self.sha256, self.hmac, self.receipt):
            if digest is not None and not _SHA256_HEX.fullmatch(digest):
                raise ValueError("not 64 lower-case hex digits")
        if self.receipt is not None and self.hmac is None:
            raise ValueError("a receipt without an HMAC")

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Self | None:
        """Read a record from what S3 keeps, or return `None` if the object is not a bundle.

        A multipart object is not a bundle until its tags are written. A malformed field is never
        treated as an absent one: otherwise a damaged `hmac-sha256` would remove the protection of
        a bundle, and a damaged `size` would let a truncated one pass.
        """
        expires_at, size = fields.get("expires-at", ""), fields.get("size")
        if not _NUMBER.fullmatch(expires_at) or not (size is None or _NUMBER.fullmatch(size)):
            return None
        try:
            return cls(
                int(expires_at),
                None if size is None else int(size),
                fields.get("sha256"),
                fields.get("hmac-sha256"),
                fields.get("receipt"),
            )
        except ValueError:
            return None

    def to_fields(self) -> dict[str, str]:
        fields = {
            "expires-at": str(self.expires_at),
            "size": None if self.size is None else str(self.size),
            "sha256": self.sha256,
            "hmac-sha256": self.hmac,
            "receipt": self.receipt,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def is_expired(self, now: float) -> bool:
        """Return whether the bundle has expired at `now` (Unix seconds)."""
        return now >= self.expires_at


def lifecycle_days(retention: int) -> int:
    """Return `Days` of the lifecycle rule for a retention in seconds; always longer than that."""
    return retention // DAY + 1


def expiry_time(started: float, ttl: int) -> int:
    """Return the Unix second in which a bundle expires whose upload started at `started`.

    It is counted from the start of the request, as S3 counts the age of a multipart object from
    CreateMultipartUpload.
    """
    return math.ceil(started + ttl)
