"""Who may have a bundle: HMAC-SHA256 proofs (RFC 2104), compared in constant time. Pure."""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

from service.errors import MalformedHeader

_HMAC_SHA256_HEX = re.compile(rb"[0-9A-Fa-f]{64}")


def parse_hmac(value: bytes) -> str:
    """Read an `X-HMAC` header: 64 hex digits in either case, returned in lower case.

    Anything else raises `MalformedHeader`.
    """
    if not _HMAC_SHA256_HEX.fullmatch(value):
        raise MalformedHeader("X-HMAC must be an HMAC-SHA256 as 64 hex digits.")
    return value.decode("ascii").lower()


@dataclass(frozen=True, slots=True)
class Proof:
    """What a request presents to open a bundle; the signing key is kept out of every repr."""

    hmac: str
    key: bytes = field(repr=False)


class Verification:
    """An HMAC-SHA256 computed over a bundle as it passes by."""

    def __init__(self, key: bytes) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)

    def update(self, chunk: bytes | memoryview) -> None:
        self._mac.update(chunk)

    def holds(self, claimed: str) -> bool:
        """Whether what was seen has this HMAC (64 lower-case hex digits)."""
        return same(self._mac.hexdigest(), claimed)


def same(left: str, right: str) -> bool:
    """Compare two HMACs in a time that tells nothing of where they differ."""
    return hmac.compare_digest(left, right)
