"""What is known of a bundle beside its bytes, and how S3's object tags hold it. Pure."""

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
    """A bundle's SHA-256, HMAC-SHA256 and receipt (64 lower-case hex digits), its end (Unix time).

    Without an `hmac` nothing was claimed at upload; a `receipt` stands only beside one.
    `ValueError` if a field has another shape.
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
        """Read an object's tags. `None`: this object is no bundle, or not yet one.

        A tag of the wrong shape is never taken for an absent one: a damaged `hmac-sha256` must
        not turn a guarded bundle into an open one.
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

    def expired(self, now: float) -> bool:
        """Whether the bundle is refused at `now` (Unix seconds): from `expires_at` itself on."""
        return now >= self.expires_at


def lifecycle_days(retention: int) -> int:
    """`Days` of the lifecycle rule for a longest life of `retention` seconds: always longer."""
    return retention // DAY + 1


def expiry(*, started: float, now: float, life: int, retention: int) -> int:
    """The Unix second in which a bundle uploaded between `started` and `now` ends.

    It gets its whole `life` (seconds) from `now` on, rounded up to a second, but never more than
    the lifecycle rule leaves it: S3 counts a multipart object's age from the upload's start.
    """
    return min(math.ceil(now + life), int(started) + lifecycle_days(retention) * DAY)
