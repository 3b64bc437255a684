"""HMACs, receipts and digests: computes, compares, and parses or formats their headers. Pure.

`access` uses them to decide who may download or delete a bundle, and `service` to verify what an
upload claims about itself. `http.routes` parses request headers with this module, and
`http.responses` formats `Repr-Digest`. All comparisons take constant time.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from service.bundles.record import BundleRecord
from service.errors import DigestMismatch, HmacMismatch, MalformedHeader

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
    """Verifies a proof: computes its HMAC-SHA256 over the bytes of a bundle as they arrive."""

    def __init__(self, proof: Proof) -> None:
        self._claimed = proof.hmac
        self._mac = hmac.new(proof.key, digestmod=hashlib.sha256)

    def update(self, chunk: bytes | memoryview) -> None:
        self._mac.update(chunk)

    def update_all(self, chunks: Iterable[bytes | memoryview]) -> None:
        for chunk in chunks:
            self._mac.update(chunk)

    def matches(self) -> bool:
        """Return whether the bytes so far have the HMAC of the proof."""
        return equal_digests(self._mac.hexdigest(), self._claimed)


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


@dataclass(frozen=True, slots=True)
class UploadClaims:
    """The HMAC, signing key and SHA-256 digests sent with an upload, in lower-case hex.

    The `hmac` is stored with the bundle, and downloads have to present it. With a signing `key`,
    the HMAC is verified during the upload. All `digests` are verified during the upload.
    """

    hmac: str | None = None
    key: bytes | None = field(default=None, repr=False)
    digests: Sequence[str] = ()

    @property
    def proof(self) -> Proof | None:
        """The HMAC and its key, if both were sent."""
        return None if self.hmac is None or self.key is None else Proof(self.hmac, self.key)

    def record(self, bundle_id: UUID, expires_at: int, size: int | None) -> BundleRecord:
        """Return the bundle's record, which is valid once the received bytes match the claims."""
        receipt = None if self.proof is None else compute_receipt(self.proof, bundle_id)
        sha256 = self.digests[0] if self.digests else None
        return BundleRecord(expires_at, size, sha256, self.hmac, receipt)


class UploadVerifier:
    """Computes what an upload's claims need as its bytes arrive, and nothing else."""

    def __init__(self, claims: UploadClaims) -> None:
        self._claims = claims
        self._sha256 = hashlib.sha256() if claims.digests else None
        self._hmac = None if claims.proof is None else HmacVerifier(claims.proof)

    def update(self, chunk: bytes) -> None:
        if self._sha256 is not None:
            self._sha256.update(chunk)
        if self._hmac is not None:
            self._hmac.update(chunk)

    def verify(self) -> None:
        """Raise `DigestMismatch` or `HmacMismatch` if the bytes do not match the claims."""
        if self._sha256 is not None:
            sha256 = self._sha256.hexdigest()
            if not all(equal_digests(sha256, digest) for digest in self._claims.digests):
                raise DigestMismatch
        if self._hmac is not None and not self._hmac.matches():
            raise HmacMismatch


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
