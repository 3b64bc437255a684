"""Decides whether a request may upload. `routes` asks it after the headers have been parsed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from service.bundles.limits import ANYONE, Caller
from service.bundles.proof import equal_digests
from service.errors import Unauthorized
from service.http.auth.jwts import JwtVerifier
from service.http.auth.token_path import SCOPE_KEY


@dataclass(frozen=True)
class UploadToken:
    """A token that allows uploads: its name, and its SHA-256 in lower-case hex."""

    name: str
    sha256: str


class Authorizer:
    """Accepts any of the `tokens`, and JWTs if it can verify them. Without both, anyone may upload.

    All hashes are compared, each in constant time.
    """

    def __init__(self, tokens: Sequence[UploadToken], jwts: JwtVerifier | None) -> None:
        self._tokens = tokens
        self._jwts = jwts

    async def authorize(self, scope: Scope) -> Caller:
        """Return who uploads. Raises `Unauthorized`."""
        if not self._tokens and self._jwts is None:
            return ANYONE
        token = _bearer_token(scope) or scope[SCOPE_KEY]
        if not token:
            raise Unauthorized
        sha256 = hash_token(token)
        matches = [known for known in self._tokens if equal_digests(known.sha256, sha256)]
        if matches:
            return Caller(matches[0].name)
        if self._jwts is None:
            raise Unauthorized
        return await self._jwts.verify(token)


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token as HISTORY_UPLOAD_TOKENS has it, in lower-case hex."""
    return hashlib.sha256(token.encode("latin-1")).hexdigest()


def _bearer_token(scope: Scope) -> str | None:
    """Return the token of `Authorization: Bearer`, or `None` for another scheme or two headers."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = values[0].strip().partition(b" ") if len(values) == 1 else (b"", b"", b"")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else None
