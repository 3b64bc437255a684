"""Random bundles, and the proof headers made with a signing key."""

import base64
import hashlib
import hmac
from functools import lru_cache

from tests.support.key_leaks import LEAK_DETECTOR, MIN_KEY_LENGTH


def sign(key: str, bundle: bytes) -> dict[str, str]:
    """Return both proof headers of a bundle. The key must not appear in any service's output."""
    assert len(key) >= MIN_KEY_LENGTH, (
        "this key is too short to search for it in the output of services"
    )
    LEAK_DETECTOR.add_key(key)
    digest = hmac.new(key.encode(), bundle, "sha256").hexdigest()
    return {"X-HMAC": digest, "X-SIGNING-KEY": key}


def digest(bundle: bytes) -> str:
    """Return the value of `Content-Digest` or `Repr-Digest` for a bundle."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(bundle).digest()).decode()}:"


@lru_cache(maxsize=16)
def random_bytes(seed: int, size: int) -> bytes:
    """Return pseudo-random bytes, three times as fast as `random.randbytes`."""
    return hashlib.shake_128(seed.to_bytes(8)).digest(size)
