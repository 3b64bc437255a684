"""TLS, as listen-tls.conf has it."""

import re
import ssl
from pathlib import Path

import pytest

from tests.infra.nginx.certificates import make_certificate
from tests.infra.nginx.standalone import alone_at, get
from tests.infra.stack.nginx import NGINX, find_nginx
from tests.infra.tools import installed
from tests.support.clients.sockets import dial, raw_request, read_all
from tests.support.stores import free_ports

# The replicas are started once, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")


def test_tls(tmp_path: Path) -> None:
    """As listen-tls.conf has it: forward secrecy, nothing in the clear, and no way back to it."""
    installed(find_nginx)
    certificate = make_certificate(tmp_path)
    port = free_ports(1)[0]
    lines = (NGINX / "listen-tls.conf").read_text().replace("tls/", f"{tmp_path}/tls/")
    lines = re.sub(r"listen \[::\].*", "", lines).replace(
        "listen 443 ", f"listen 127.0.0.1:{port} "
    )
    with alone_at(tmp_path / "output.log", port, lines) as running:

        def connect(version: ssl.TLSVersion, ciphers: str = "DEFAULT") -> ssl.SSLSocket:
            context = ssl.create_default_context(cafile=certificate)
            context.minimum_version = context.maximum_version = version
            context.set_ciphers(ciphers)
            return context.wrap_socket(dial(running.url), server_hostname="localhost")

        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            with connect(version) as connection:
                connection.sendall(get("/", None, close=True))
                assert running.answer()["X-Forwarded-Proto"] == "https"
                answer = read_all(connection)
                assert answer.startswith(b"HTTP/1.1 204 ")
                assert b"\r\nStrict-Transport-Security: max-age=31536000\r\n" in answer
                session = connection.session
        # With TLS 1.3 a session in the server's cache looks like a ticket, too.
        assert session is not None
        assert not session.has_ticket
        for weak in ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA"):
            with pytest.raises(ssl.SSLError):
                connect(ssl.TLSVersion.TLSv1_2, weak).close()
        # No redirect: whoever says his keys in the clear is not invited to say them again.
        assert raw_request(running.url, get("/", None)).startswith(b"HTTP/1.1 400 ")
