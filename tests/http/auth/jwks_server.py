"""An identity provider: key pairs, JWTs, and an endpoint for the public keys that can fail."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from tests.support.key_leaks import LEAK_DETECTOR

ISSUER, AUDIENCE = "https://id.example", "history"
SUBJECT = "user-0123456789"


@dataclass(frozen=True)
class KeyPair:
    """A private key for one algorithm, and its id."""

    key_id: str
    algorithm: str = "RS256"

    @cached_property
    def private(self) -> Any:
        match self.algorithm[:2]:
            case "ES":
                curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
                return ec.generate_private_key(curves[self.algorithm])
            case "Ed":
                return ed25519.Ed25519PrivateKey.generate()
            case _:
                return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def public(self) -> dict[str, Any]:
        """The public key as an entry of a JWKS document."""
        algorithm: Any = get_default_algorithms()[self.algorithm]
        entry = json.loads(algorithm.to_jwk(self.private.public_key()))
        return {**entry, "kid": self.key_id, "alg": self.algorithm, "use": "sig"}

    def token(self, **claims: Any) -> str:
        """Make a JWT. A claim that is `None` is left out."""
        now = time.time()
        complete = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": now + 60} | claims
        present = {name: value for name, value in complete.items() if value is not None}
        headers = {"kid": self.key_id}
        return LEAK_DETECTOR.add_key(jwt.encode(present, self.private, self.algorithm, headers))


@dataclass
class Endpoint:
    """What the endpoint answers, and how often it was asked. It waits while `answer` is not set."""

    keys: list[dict[str, Any]]
    status: int = 200
    document: bytes | None = None  # instead of the keys
    delay: float = 0
    answer: threading.Event = field(default_factory=threading.Event)
    requests: int = 0
    url: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.answer.set()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a service that trusts this provider."""
        return {"jwt_jwks_url": self.url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}


@contextmanager
def running(*keys: KeyPair) -> Iterator[Endpoint]:
    """Serve the public keys on a free port."""
    endpoint = Endpoint([key.public for key in keys])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            endpoint.requests += 1
            document = endpoint.document or json.dumps({"keys": endpoint.keys}).encode()
            time.sleep(endpoint.delay)
            endpoint.answer.wait(30)
            self.send_response(endpoint.status)
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            try:
                self.wfile.write(document)
            except (BrokenPipeError, ConnectionResetError):
                return

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.answer.set()
            server.shutdown()
            thread.join(10)
