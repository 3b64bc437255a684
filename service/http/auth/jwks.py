"""The public keys of an identity provider (JWKS, RFC 7517): fetched, limited and cached.

`jwts` asks for the key of each token. Keys older than ten minutes are fetched again before they are
used. If that fails, they stay valid for a day.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from http import HTTPStatus
from typing import Any

import aiohttp
import jwt

_log = logging.getLogger(__name__)

MAX_SIZE = 256 * 1024
"""Bytes of a JWKS document. Providers have a few keys, of 500 to 2,000 bytes each."""

FETCH_TIMEOUT = 5.0
"""Seconds for a request to the endpoint."""

FETCH_INTERVAL = 60.0
"""Seconds between requests, however many tokens have unknown keys."""

RETRY_INTERVAL = 10.0
"""Seconds until the next request after one that failed."""

REFRESH_AFTER = 600.0
"""Seconds after which keys are fetched again before their use, so that removed ones are refused."""

MAX_AGE = 86_400.0
"""Seconds for which keys stay valid while the endpoint cannot be reached."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}

ALGORITHMS = (*_RSA, *_CURVES.values(), "EdDSA")
"""The asymmetric ones. A server that knows a shared secret could also make tokens."""


class JwksError(Exception):
    """The endpoint did not return usable keys; the message says why."""


class KeyCache:
    """The keys at a URL. Its methods never raise: a key that cannot be had is `None`."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=True,
        )
        self._keys: list[jwt.PyJWK] = []
        self._fetched_at = self._next_fetch = -math.inf
        self._fetch: asyncio.Task[None] | None = None
        self._failing = False  # since the last request

    async def close(self) -> None:
        try:
            if self._fetch is not None:
                self._fetch.cancel()
                await asyncio.wait([self._fetch])
        finally:
            await self._session.close()

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with this id for this algorithm, or without an id the only one for it.

        If it is unknown, or the keys are too old, they are fetched before that, at most once in
        `FETCH_INTERVAL`. All callers wait for the same request. If it fails, the old keys are used,
        and until a request succeeds, tokens of these keys do not wait for it.
        """
        known = self._known(key_id, algorithm)
        if known is None or self._age > REFRESH_AFTER:
            self.refresh()
            if self._fetch is not None and (known is None or not self._failing):
                await asyncio.wait([self._fetch])
        return self._known(key_id, algorithm)

    def refresh(self) -> None:
        """Start to fetch the keys, unless that was done a short time ago.

        This is work for all requests. So it has no part in the id, timing and trace of this one.
        """
        running = self._fetch is not None and not self._fetch.done()
        if not running and self._clock() >= self._next_fetch:
            self._fetch = asyncio.create_task(self._refresh(), context=Context())

    @property
    def available(self) -> bool:
        """Whether there are keys that are valid."""
        return bool(self._keys) and self._age < MAX_AGE

    @property
    def _age(self) -> float:
        return self._clock() - self._fetched_at

    def _known(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        if not self.available:
            return None
        keys = [
            key
            for key in self._keys
            if key_id in (None, key.key_id) and key.algorithm_name == algorithm
        ]
        return keys[0] if len(keys) == 1 else None

    async def _refresh(self) -> None:
        try:
            self._keys = _parse(await self._download())
        except Exception as error:  # noqa: BLE001 - whatever it is, the old keys stay valid
            self._failing = True
            self._next_fetch = self._clock() + RETRY_INTERVAL
            _log.error(
                "the keys for JWTs cannot be fetched (%s): check HISTORY_JWT_JWKS_URL, and that "
                "this server can reach it",
                _cause(error),
            )
        else:
            self._failing = False
            self._fetched_at = self._clock()
            self._next_fetch = self._fetched_at + FETCH_INTERVAL

    async def _download(self) -> bytes:
        async with self._session.get(self._url, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                raise JwksError(f"status {response.status}")
            document = bytearray()
            async for chunk in response.content.iter_any():
                document += chunk
                if len(document) > MAX_SIZE:
                    raise JwksError(f"more than {MAX_SIZE} bytes")
            return bytes(document)


def _cause(error: Exception) -> str:
    """Describe an error without the path and the query of the URL, which may hold secrets."""
    harmless = isinstance(error, JwksError | aiohttp.ClientConnectorError)
    return str(error) if harmless else type(error).__name__


def _parse(document: bytes) -> list[jwt.PyJWK]:
    """Return the public keys for signatures, each once for every algorithm it may be used with."""
    try:
        keys = [key for entry in json.loads(document)["keys"] for key in _usable(entry)]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise JwksError("not a set of keys") from error
    if not keys:
        raise JwksError("no public key")
    return keys


def _usable(entry: Any) -> list[jwt.PyJWK]:
    """Return the keys of one entry, or none if it is of an unknown kind, invalid, or private.

    PyJWT binds a key to one algorithm. Without one, it would take RS256 for all RSA keys. If `d` is
    there, it would compute a private key from it, which takes minutes for some values.
    """
    if not isinstance(entry, dict) or entry.get("use") == "enc" or "d" in entry:
        return []
    declared = entry.get("alg")
    names = [name for name in _algorithms(entry) if declared in (None, name)]
    with suppress(jwt.PyJWTError, ValueError, TypeError, LookupError, ArithmeticError):
        return [jwt.PyJWK(entry, name) for name in names]
    return []


def _algorithms(entry: dict[str, Any]) -> tuple[str, ...]:
    """Return the algorithms for a type of key (RFC 7518, section 6). `oct` is a shared secret."""
    match entry.get("kty"), entry.get("crv"):
        case "RSA", _:
            return _RSA
        case "EC", str(curve) if curve in _CURVES:
            return (_CURVES[curve],)
        case "OKP", "Ed25519" | "Ed448":
            return ("EdDSA",)
        case _:
            return ()
