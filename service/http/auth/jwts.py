"""Checks JWTs (RFC 7519) with the keys of an identity provider. `authorizer` uses it."""

import jwt

from service.bundles.limits import Caller
from service.errors import Unauthorized
from service.http.auth.jwks import ALGORITHMS, KeyCache

NAME = "jwt"
"""The name of all callers with a JWT, in metrics. No upload token can have it."""

_OPTIONS = {"require": ["exp"], "verify_iat": False, "enforce_minimum_key_length": True}

_NO_KEYS = (
    "The server cannot check this token now, because it cannot get the keys of the identity "
    "provider: try again in a minute."
)


class JwtVerifier:
    """Accepts JWTs of one issuer and for one audience, until they expire."""

    def __init__(self, keys: KeyCache, *, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    async def verify(self, token: str) -> Caller:
        """Return whose token it is. Raises `Unauthorized`."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in ALGORITHMS:
                raise Unauthorized
            key = await self._keys.find(header.get("kid"), algorithm)
            if key is None:
                raise Unauthorized(None if self._keys.available else _NO_KEYS)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                options=_OPTIONS,  # type: ignore[arg-type]
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Unauthorized from error
        return Caller(NAME, str(claims.get("sub", "")))
