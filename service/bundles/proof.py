"""HMACs, receipts and digests: computes, compares, and parses or formats their headers. Pure.

`service` uses them to decide who may download or delete a bundle, `claims` to verify an upload.
`http.routes` parses request headers with this module, and `http.responses` formats `Repr-Digest`.
All comparisons take constant time.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

from service.errors import MalformedHeader

MAX_DIGESTS = 256
"""The maximum number of digests in one `Content-Digest` or `Repr-Digest` header.

RFC 9651, section 3.2, asks parsers to support 1,024. Parsing that many blocks the event loop for
3 ms, and there are only nine registered algorithms.
"""

_HMAC_SHA256_HEX = re.compile(rb"[0-9A-Fa-f]{64}")
_DIGEST_MEMBER = re.compile(rb"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*=*):(?: *;.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a download has to present: the bundle's HMAC and its signing key.

    The signing key is not part of the `repr`.
    """

    hmac: str
    key: bytes = field(repr=False)


class HmacVerifier:
    """Computes an HMAC-SHA256 over the bytes of a bundle as they arrive."""

    def __init__(self, key: bytes) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)

    def update(self, chunk: bytes | memoryview) -> None:
        self._mac.update(chunk)

    def update_all(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self._mac.update(chunk)

    def matches(self, claimed: str) -> bool:
        """Return whether the bytes so far have this HMAC, given as 64 lower-case hex digits."""
        return equal_digests(self._mac.hexdigest(), claimed)


def compute_receipt(proof: Proof, bundle_id: UUID) -> str:
    """Compute a value that only the holder of the signing key can compute for this bundle.

    It is stored beside the bundle after its proof was verified against all of its bytes. Later
    downloads are authorized by comparing it, without reading the bundle first. It does not reveal
    the key, but guessed keys can be tested against it faster than against the bundle. Signing keys
    should therefore have at least 128 random bits. Returns 64 lower-case hex digits.
    """
    message = b"\0".join((b"xmtp-history-receipt-v1", str(bundle_id).encode(), proof.hmac.encode()))
    return hmac.new(proof.key, message, hashlib.sha256).hexdigest()


def equal_digests(left: str, right: str) -> bool:
    """Compare two hex digests in constant time."""
    return hmac.compare_digest(left, right)


def parse_hmac(value: bytes) -> str:
    """Parse an `X-HMAC` header: 64 hex digits in either case, returned in lower case.

    Anything else raises `MalformedHeader`.
    """
    if not _HMAC_SHA256_HEX.fullmatch(value):
        raise MalformedHeader(
            "The X-HMAC header is not 64 hex digits: send the bundle's HMAC-SHA256 in hex."
        )
    return value.decode("ascii").lower()


def parse_digests(name: str, value: bytes) -> str | None:
    """Parse a `Content-Digest` or `Repr-Digest` header (RFC 9530); return its SHA-256 in hex.

    Returns `None` if the header has only other algorithms. If it has several members with the same
    name, the last one counts. Bad syntax (RFC 9651: a dictionary of byte sequences) and more than
    `MAX_DIGESTS` members raise `MalformedHeader`.
    """
    if value.count(b",") >= MAX_DIGESTS:
        raise MalformedHeader(
            f"The {name} header has too many digests: send at most {MAX_DIGESTS}."
        )
    encoded = None
    for member in value.split(b","):
        match = _DIGEST_MEMBER.fullmatch(member.strip(b" \t"))
        if match is None:
            raise MalformedHeader(
                f"The {name} header has invalid syntax: send a digest such as "
                "sha-256=:<Base64>: (RFC 9530)."
            )
        if match[1] == b"sha-256":
            encoded = match[2]
    if encoded is None:
        return None
    try:
        digest = base64.b64decode(encoded.rstrip(b"=") + b"=", validate=True)
    except binascii.Error as error:
        raise MalformedHeader(
            f"The sha-256 in the {name} header is not valid Base64: send the bundle's "
            "SHA-256 in Base64."
        ) from error
    if len(digest) != hashlib.sha256().digest_size:
        raise MalformedHeader(
            f"The sha-256 in the {name} header is not 32 bytes long: send the bundle's "
            "SHA-256 in Base64."
        )
    return digest.hex()


def format_digest(sha256: str) -> str:
    """Return the value of a `Repr-Digest` header (RFC 9530) for 64 hex digits."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
