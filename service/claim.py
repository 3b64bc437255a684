"""What an upload says of itself, and whether what arrives is that. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from service.errors import DigestMismatch, HmacMismatch
from service.proof import Proof, Verification, receipt, same
from service.record import BundleRecord


@dataclass(frozen=True, slots=True)
class Claim:
    """The HMAC, signing key and SHA-256 digests that came with an upload, in lower-case hex.

    The `hmac` is stored and opens the bundle from then on; a `key` beside it lets it be checked at
    once, as all `digests` are.
    """

    hmac: str | None = None
    key: bytes | None = field(default=None, repr=False)
    digests: Sequence[str] = ()


class Arrival:
    """A bundle as it passes by, to be held against its claim."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._sha256 = hashlib.sha256()
        self._verification = None if claim.key is None else Verification(claim.key)

    def update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self._verification is not None:
            self._verification.update(chunk)

    def record(self, bundle_id: UUID, expires_at: int) -> BundleRecord:
        """The record of what has arrived. Raises `DigestMismatch` or `HmacMismatch`."""
        sha256, hmac, key = self._sha256.hexdigest(), self._claim.hmac, self._claim.key
        if not all(same(sha256, digest) for digest in self._claim.digests):
            raise DigestMismatch
        if self._verification is None or hmac is None or key is None:
            return BundleRecord(sha256, expires_at, hmac)
        if not self._verification.holds(hmac):
            raise HmacMismatch
        return BundleRecord(sha256, expires_at, hmac, receipt(Proof(hmac, key), bundle_id))
