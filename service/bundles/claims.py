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

    def record(self, bundle_id: UUID, expires_at: int, size: int | None) -> BundleRecord:
        """Return the bundle's record, which is valid once the received bytes match the claims."""
        receipt = None
        if self.hmac is not None and self.key is not None:
            receipt = compute_receipt(Proof(self.hmac, self.key), bundle_id)
        sha256 = self.digests[0] if self.digests else None
        return BundleRecord(expires_at, size, sha256, self.hmac, receipt)


class UploadVerifier:
    """Computes what an upload's claims need as its bytes arrive, and nothing else."""

    def __init__(self, claims: UploadClaims) -> None:
        self._claims = claims
        self._sha256 = hashlib.sha256() if claims.digests else None
        self._hmac = None if claims.key is None else HmacVerifier(claims.key)

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
        if self._hmac is not None and not self._hmac.matches(self._claims.hmac or ""):
            raise HmacMismatch
