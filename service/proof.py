"""Who may have a bundle, and whether it came whole: HMACs, receipts, digests. Pure.

Everything is compared in constant time.
"""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from uuid import UUID

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


def receipt(proof: Proof, bundle_id: UUID) -> str:
    """What only the holder of the signing key can compute for a bundle, as 64 hex digits.

    Kept beside the bundle once its proof was checked against all of it, this releases it to later
    requests without another read. It tells nothing of the key, but lets who sees it test guesses
    faster than by reading the bundle: keys want 128 random bits or more.
    """
    message = b"\0".join((b"xmtp-history-receipt-v1", str(bundle_id).encode(), proof.hmac.encode()))
    return hmac.new(proof.key, message, hashlib.sha256).hexdigest()


_MEMBER = re.compile(rb"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*=*):(?: *;.*)?", re.DOTALL)


MAX_MEMBERS = 256
"""Members of a digest header that are read.

RFC 9651 (section 3.2) asks for 1,024, but those take 3 ms of everybody's time, and there are no
more than nine algorithms.
"""


def parse_digests(name: str, value: bytes) -> str | None:
    """Read the SHA-256 in a `Content-Digest` or `Repr-Digest` header (RFC 9530), as 64 hex digits.

    `None` where it holds only other algorithms. Bad syntax (RFC 9651: a dictionary of byte
    sequences) or more than `MAX_MEMBERS` digests raise `MalformedHeader`; of several members of
    one name the last one counts.
    """
    if value.count(b",") >= MAX_MEMBERS:
        raise MalformedHeader(f"{name} must hold at most {MAX_MEMBERS} digests.")
    found = None
    for member in value.split(b","):
        match = _MEMBER.fullmatch(member.strip(b" \t"))
        if match is None:
            raise MalformedHeader(f"{name} must be such as sha-256=:<Base64>: (RFC 9530).")
        if match[1] == b"sha-256":
            found = match[2]
    if found is None:
        return None
    try:
        digest = base64.b64decode(found.rstrip(b"=") + b"=", validate=True)
    except binascii.Error as error:
        raise MalformedHeader(f"{name} holds a sha-256 that is no Base64.") from error
    if len(digest) != hashlib.sha256().digest_size:
        raise MalformedHeader(f"{name} holds a sha-256 that is not 32 bytes long.")
    return digest.hex()


def digest_field(sha256: str) -> str:
    """The value of a `Repr-Digest` header (RFC 9530) for 64 hex digits."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def same(left: str, right: str) -> bool:
    """Compare two hex digests in a time that tells nothing of where they differ."""
    return hmac.compare_digest(left, right)
