"""JWTs of an identity provider: which are accepted, and what happens if its endpoint fails."""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from jwt.algorithms import RSAAlgorithm

from service.http import access_log
from service.http.auth import jwks
from tests.http.auth import jwks_server
from tests.http.auth.jwks_server import SUBJECT, Endpoint, KeyPair
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.polling import wait_until
from tests.support.services.thread import Service, StartService

KEY, OTHER_KEY = KeyPair("first"), KeyPair("second")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with jwks_server.running(KEY) as endpoint:
        yield endpoint


@pytest.fixture
def service(start_service: StartService, endpoint: Endpoint) -> Service:
    return start_service(**endpoint.settings)


def upload(service: Service, token: str, *, in_path: bool = False) -> int:
    path = f"/t/{token}/upload" if in_path else "/upload"
    headers = {} if in_path else {"Authorization": f"Bearer {token}"}
    response = service.http.post(path, content=b"bundle", headers=headers)
    if response.status_code != 200:
        assert response.json()["code"] == "unauthorized"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    return response.status_code


def unsigned(claims: dict[str, Any], header: dict[str, Any]) -> str:
    parts = (json.dumps(part).encode() for part in (header, claims))
    return b".".join([*map(base64.urlsafe_b64encode, parts), b""]).replace(b"=", b"").decode()


@pytest.mark.parametrize("in_path", [False, True])
def test_valid_token_allows_an_upload(
    service: Service, caplog: pytest.LogCaptureFixture, *, in_path: bool
) -> None:
    caplog.set_level("INFO", logger=access_log.__name__)
    assert upload(service, KEY.token(), in_path=in_path) == 200
    wait_until(lambda: "POST /upload" in caplog.text)
    assert vars(caplog.records[-1])["fields"]["caller"] == f"jwt:{SUBJECT[:8]}…"
    assert SUBJECT not in caplog.text
    assert service.metrics()['history_uploads_total{caller="jwt"}'] == 1


def test_asymmetric_algorithms_are_accepted(start_service: StartService) -> None:
    """A JWK need not have `alg` (RFC 7517, section 4.4). An RSA key is then for six algorithms."""
    keys = [KeyPair(f"a key for {algorithm}", algorithm) for algorithm in jwks.ALGORITHMS]
    with jwks_server.running(*keys) as endpoint:
        declared = start_service(**endpoint.settings)
        for key in keys:
            assert upload(declared, key.token()) == 200, key.algorithm
        for entry in endpoint.keys:
            del entry["alg"]
        undeclared = start_service(**endpoint.settings)
        for key in keys:
            assert upload(undeclared, key.token()) == 200, key.algorithm


def test_key_is_not_used_for_another_algorithm(start_service: StartService) -> None:
    """Neither for another than its JWK says, nor for one of another type of key, or curve."""
    rsa, p256, ed25519 = KeyPair("rsa"), KeyPair("p256", "ES256"), KeyPair("ed25519", "EdDSA")
    with jwks_server.running(rsa, p256, ed25519) as endpoint:
        del endpoint.keys[1]["alg"], endpoint.keys[2]["alg"]
        service = start_service(**endpoint.settings)
        for key in (rsa, p256, ed25519):
            assert upload(service, key.token()) == 200
        for key_id, algorithm in [
            *[("rsa", name) for name in ("RS384", "PS256", "ES256", "EdDSA")],
            *[("p256", name) for name in ("RS256", "ES384", "ES512", "EdDSA")],
            *[("ed25519", name) for name in ("RS256", "ES256")],
        ]:
            assert upload(service, KeyPair(key_id, algorithm).token()) == 401, (key_id, algorithm)
        claims = {"iss": jwks_server.ISSUER, "aud": jwks_server.AUDIENCE, "exp": time.time() + 60}
        for algorithm in ("RS384", "RS512", "PS256", "PS384", "PS512"):
            token = jwt.encode(claims, rsa.private, algorithm, {"kid": "rsa"})
            assert upload(service, LEAK_DETECTOR.add_key(token)) == 401, algorithm


UNUSABLE: list[Any] = [
    {"alg": ["RS256"]},
    {"alg": {}},
    {"alg": 5},
    {"alg": "HS256"},
    {"alg": "ES256"},
    {"alg": "RSA-OAEP"},
    {"use": "enc"},
    {"kty": ["RSA"]},
    {"kty": "oct", "k": "AAAA"},
    {"kty": "EC", "crv": ["P-256"]},
    {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "X25519", "x": "AA"},
    {"n": 5},
    {"n": "***"},
]


def test_unusable_keys_are_discarded_alone(start_service: StartService, endpoint: Endpoint) -> None:
    """The other keys of the set stay usable, and none of these counts as a key with this id."""
    unusable = [{**KEY.public, **changes} for changes in UNUSABLE]
    private = json.loads(RSAAlgorithm.to_jwk(KEY.private)) | {"kid": KEY.key_id}
    keys = [*unusable, private, None, "a key", KEY.public]
    endpoint.document = json.dumps({"keys": keys}).encode()
    service = start_service(**endpoint.settings)
    assert upload(service, KEY.token()) == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1_700_000_000},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1e400},
        {"nbf": 4_000_000_000},
        {"aud": "another service"},
        {"aud": None},
        {"iss": "https://other.example"},
        {"iss": None},
        {"sub": 5},
    ],
    ids=str,
)
def test_token_with_other_claims_is_refused(service: Service, claims: dict[str, Any]) -> None:
    assert upload(service, KEY.token(**claims)) == 401
    assert service.objects() == []


def test_token_without_a_subject_is_accepted(service: Service) -> None:
    assert upload(service, KEY.token(sub=None)) == 200


def test_token_that_is_not_signed_with_a_key_of_the_provider_is_refused(service: Service) -> None:
    now = time.time()
    claims = {"iss": jwks_server.ISSUER, "aud": jwks_server.AUDIENCE, "exp": now + 60}
    public = KEY.public["n"].encode()
    shared_secret = jwt.encode(claims, public, "HS256", {"kid": KEY.key_id})
    header, payload, signature = KEY.token().split(".")
    changed = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "admin"}).encode())
    for token in (
        KeyPair(KEY.key_id).token(),
        unsigned(claims, {"alg": "none", "kid": KEY.key_id}),
        unsigned(claims, {"alg": "None", "kid": KEY.key_id}),
        shared_secret,
        f"{header}.{changed.decode().rstrip('=')}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        "a.b.c",
        "x",
        unsigned(claims, {"alg": "RS256", "kid": 5}),
        unsigned(claims, {"alg": ["RS256"], "kid": KEY.key_id}),
    ):
        assert upload(service, LEAK_DETECTOR.add_key(token)) == 401
    assert service.objects() == []


def test_shared_secrets_of_the_provider_are_no_keys(start_service: StartService) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("=")
    with jwks_server.running(KEY) as endpoint:
        endpoint.keys.append({"kty": "oct", "kid": "shared", "alg": "HS256", "k": secret})
        service = start_service(**endpoint.settings)
        claims = {"iss": jwks_server.ISSUER, "aud": jwks_server.AUDIENCE, "exp": time.time() + 60}
        token = jwt.encode(claims, b"s" * 32, "HS256", {"kid": "shared"})
        assert upload(service, LEAK_DETECTOR.add_key(token)) == 401
        assert upload(service, KEY.token()) == 200


def test_flood_of_unknown_keys_asks_the_endpoint_once(service: Service, endpoint: Endpoint) -> None:
    assert upload(service, KEY.token()) == 200
    assert endpoint.requests == 1
    for number in range(20):
        assert upload(service, KeyPair(f"unknown {number}", "ES256").token()) == 401
    assert endpoint.requests == 1, "it was asked less than a minute ago"


def test_new_key_is_fetched_after_a_minute(
    start_service: StartService, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_INTERVAL", 0.5)
    service = start_service(**endpoint.settings)
    assert upload(service, KEY.token()) == 200
    endpoint.keys[:] = [OTHER_KEY.public]
    assert upload(service, KEY.token()) == 200, "the key is still in the cache"
    wait_until(lambda: upload(service, OTHER_KEY.token()) == 200)
    assert upload(service, KEY.token()) == 401, "the provider has removed the key"


def test_removed_key_becomes_invalid_with_the_next_refresh(
    start_service: StartService, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_INTERVAL", 0.0)
    monkeypatch.setattr(jwks, "REFRESH_AFTER", 0.0)
    service = start_service(**endpoint.settings)
    assert upload(service, KEY.token()) == 200
    endpoint.keys[:] = [OTHER_KEY.public]
    assert upload(service, KEY.token()) == 401


BROKEN: dict[str, dict[str, Any]] = {
    "error": {"status": 500},
    "redirect": {"status": 302},
    "10 MB": {"document": b'{"keys": []' + b" " * 10_000_000 + b"}"},
    "not JSON": {"document": b"<html>"},
    "a list": {"document": b"[1]"},
    "no keys": {"document": b'{"keys": []}'},
    "deep": {"document": b"[" * 100_000},
    "silent": {"delay": 2},
}


@pytest.mark.parametrize("name", BROKEN)
def test_endpoint_that_fails_lets_nobody_in(
    start_service: StartService,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """The server says why, and tries again."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 0.5)
    monkeypatch.setattr(jwks, "RETRY_INTERVAL", 0.2)
    working = vars(endpoint).copy()
    vars(endpoint).update(BROKEN[name])
    service = start_service(**endpoint.settings)
    token = KEY.token()
    response = service.http.post("/upload", headers={"Authorization": f"Bearer {token}"})
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert "cannot check this token now" in response.json()["detail"]
    assert "check HISTORY_JWT_JWKS_URL" in caplog.text
    vars(endpoint).update(working)
    wait_until(lambda: upload(service, token) == 200)


@pytest.mark.parametrize("name", BROKEN)
def test_endpoint_that_fails_does_not_lock_out_known_keys(
    start_service: StartService, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 0.5)
    monkeypatch.setattr(jwks, "RETRY_INTERVAL", 0.0)
    monkeypatch.setattr(jwks, "FETCH_INTERVAL", 0.0)
    monkeypatch.setattr(jwks, "REFRESH_AFTER", 0.0)
    service = start_service(**endpoint.settings)
    assert upload(service, KEY.token()) == 200
    vars(endpoint).update(BROKEN[name])
    requests = endpoint.requests
    for _ in range(3):
        assert upload(service, KEY.token()) == 200
        assert upload(service, OTHER_KEY.token()) == 401
    assert endpoint.requests > requests


def test_keys_are_not_used_for_ever(
    service: Service, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(service, KEY.token()) == 200
    endpoint.status = 500
    monkeypatch.setattr(jwks, "MAX_AGE", 0.0)
    assert upload(service, KEY.token()) == 401
