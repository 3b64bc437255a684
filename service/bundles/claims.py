"""What an upload claims about itself (HMAC, signing key, digests), and whether it is true. Pure.

`http.routes` parses the claims from the headers. `service` verifies them during the upload, which
gives the bundle's record.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from service.bundles.proof import HmacVerifier, Proof, compute_receipt, equal_digests
from service.bundles.record import BundleRecord
from service.errors import DigestMismatch, HmacMismatch


@dataclass(frozen=True, slots=True)
class UploadClaims:
    """The HMAC, signing key and SHA-256 digests sent with an upload, in lower-case hex.

    The `hmac` is stored with the bundle, and downloads have to present it. With a signing `key`,
    the HMAC is verified during the upload. All `digests` are verified during the upload.
    """

    hmac: str | None = None
    key: bytes | None = field(default=None, repr=False)
    digests: Sequence[str] = ()


class UploadVerifier:
    """Computes the digests of an upload as its bytes arrive, and compares them with the claims."""

    def __init__(self, claims: UploadClaims) -> None:
        self._claims = claims
        self._sha256 = hashlib.sha256()
        self._hmac = None if claims.key is None else HmacVerifier(claims.key)

    def update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self._hmac is not None:
            self._hmac.update(chunk)

    def verify(self, bundle_id: UUID, expires_at: int) -> BundleRecord:
        """Return the record of the received bundle.

        Raises `DigestMismatch` or `HmacMismatch` if the bytes do not match the claims.
        """
        sha256, hmac, key = self._sha256.hexdigest(), self._claims.hmac, self._claims.key
        if not all(equal_digests(sha256, digest) for digest in self._claims.digests):
            raise DigestMismatch
        if self._hmac is None or hmac is None or key is None:
            return BundleRecord(sha256, expires_at, hmac)
        if not self._hmac.matches(hmac):
            raise HmacMismatch
        return BundleRecord(sha256, expires_at, hmac, compute_receipt(Proof(hmac, key), bundle_id))
