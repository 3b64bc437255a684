"""A bundle's record, which S3 keeps as object tags, and when the bundle expires. Pure.

`claims` creates the record of an upload, and `service` reads it for every other request.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

DAY = 86_400

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """A bundle's SHA-256, HMAC-SHA256 and receipt (64 lower-case hex digits), and its expiry.

    `expires_at` is in Unix seconds. `hmac` is `None` if the upload claimed none. Only a record with
    an `hmac` can have a `receipt`. A field of the wrong form raises `ValueError`.
    """

    sha256: str
    expires_at: int
    hmac: str | None = None
    receipt: str | None = None

    def __post_init__(self) -> None:
        for digest in (self.sha256, self.hmac, self.receipt):
            if digest is not None and not _SHA256_HEX.fullmatch(digest):
                raise ValueError("not 64 lower-case hex digits")
        if self.receipt is not None and self.hmac is None:
            raise ValueError("a receipt without an HMAC")

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Read a record from an object's tags, or return `None` if the object is not a bundle.

        A multipart object is not a bundle until its tags are written. A malformed tag is never
        treated as an absent one: otherwise a damaged `hmac-sha256` would remove the protection of
        a bundle.
        """
        expires_at = tags.get("expires-at", "")
        if not _UNIX_SECONDS.fullmatch(expires_at):
            return None
        try:
            return cls(
                tags.get("sha256", ""),
                int(expires_at),
                tags.get("hmac-sha256"),
                tags.get("receipt"),
            )
        except ValueError:
            return None

    def to_tags(self) -> dict[str, str]:
        tags = {"sha256": self.sha256, "expires-at": str(self.expires_at)}
        if self.hmac is not None:
            tags["hmac-sha256"] = self.hmac
        if self.receipt is not None:
            tags["receipt"] = self.receipt
        return tags

    def is_expired(self, now: float) -> bool:
        """Return whether the bundle has expired at `now` (Unix seconds)."""
        return now >= self.expires_at


def lifecycle_days(retention: int) -> int:
    """Return `Days` of the lifecycle rule for a retention in seconds; always longer than that."""
    return retention // DAY + 1


def expiry_time(*, started: float, now: float, ttl: int, retention: int) -> int:
    """Return the Unix second in which a bundle uploaded from `started` to `now` expires.

    It lives for `ttl` seconds from `now`, rounded up to a whole second, but not longer than the
    lifecycle rule allows: S3 counts the age of a multipart object from CreateMultipartUpload.
    """
    return min(math.ceil(now + ttl), int(started) + lifecycle_days(retention) * DAY)
