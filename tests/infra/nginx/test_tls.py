"""TLS, with the configuration in listen-tls.conf."""

import re
import ssl
from pathlib import Path

import pytest

from tests.infra.nginx.certificates import make_certificate
from tests.infra.nginx.standalone import get_request, running_standalone
from tests.infra.stack.nginx import NGINX, find_nginx
from tests.infra.tools import find_or_skip
from tests.support.clients.sockets import connect_to, raw_request, read_until_closed
from tests.support.stores import free_ports

# One worker runs all nginx tests: they share two replicas, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")


def test_tls_has_forward_secrecy_and_plain_http_is_refused(tmp_path: Path) -> None:
    """Session tickets and weak ciphers are off, HSTS is on, and plain HTTP is not redirected."""
    find_or_skip(find_nginx)
    certificate = make_certificate(tmp_path)
    port = free_ports(1)[0]
    listen = (NGINX / "listen-tls.conf").read_text().replace("tls/", f"{tmp_path}/tls/")
    listen = re.sub(r"listen \[::\].*", "", listen).replace(
        "listen 443 ", f"listen 127.0.0.1:{port} "
    )
    with running_standalone(tmp_path / "output.log", port, listen) as nginx:

        def connect(version: ssl.TLSVersion, ciphers: str = "DEFAULT") -> ssl.SSLSocket:
            context = ssl.create_default_context(cafile=certificate)
            context.minimum_version = context.maximum_version = version
            context.set_ciphers(ciphers)
            return context.wrap_socket(connect_to(nginx.url), server_hostname="localhost")

        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            with connect(version) as connection:
                connection.sendall(get_request("/", None, close=True))
                assert nginx.respond()["X-Forwarded-Proto"] == "https"
                response = read_until_closed(connection)
                assert response.startswith(b"HTTP/1.1 204 ")
                assert b"\r\nStrict-Transport-Security: max-age=31536000\r\n" in response
                session = connection.session
            # nginx's own errors have other headers than the service's responses.
            with connect(version) as connection:
                connection.sendall(get_request("/metrics", None, close=True))
                response = read_until_closed(connection)
                assert response.startswith(b"HTTP/1.1 404 ")
                assert b"\r\nStrict-Transport-Security: max-age=31536000\r\n" in response
        # Only TLS 1.2 is checked: with TLS 1.3, a cached session looks like a ticket too.
        assert session is not None
        assert not session.has_ticket
        for weak in ("ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA"):
            with pytest.raises(ssl.SSLError):
                connect(ssl.TLSVersion.TLSv1_2, weak).close()
        # There is no redirect from plain HTTP. It would invite clients that have sent their key in
        # plain text to do so again.
        assert raw_request(nginx.url, get_request("/", None)).startswith(b"HTTP/1.1 400 ")
