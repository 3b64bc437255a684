"""upstream-compose.conf: nginx asks for the addresses of the replicas again while it runs."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.infra.nginx.standalone import get_request
from tests.infra.stack.nginx import NGINX, find_nginx, running_nginx
from tests.infra.tools import find_or_skip
from tests.support.clients.sockets import connect_to, read_until_closed
from tests.support.polling import wait_until

# One worker runs all nginx tests: they share two replicas, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")

BEFORE, AFTER = "127.0.0.2", "127.0.0.3"
"""The addresses of a replica before and after a restart."""

VALID = 1.0
"""Seconds for which nginx keeps an answer."""


class NameServer:
    """A DNS server that answers each question for an IPv4 address with `addresses`."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))

    def run(self) -> None:
        with suppress(OSError):  # until the socket is shut down
            while True:
                query, client = self.socket.recvfrom(512)
                if not query:
                    return
                records = b"".join(
                    b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(address)
                    for address in self.addresses
                )
                counts = b"\0\1" + len(self.addresses).to_bytes(2) + b"\0\0\0\0"
                self.socket.sendto(query[:2] + b"\x81\x80" + counts + query[12:] + records, client)


@contextmanager
def running_name_server(*addresses: str) -> Iterator[NameServer]:
    server = NameServer(*addresses)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        with suppress(OSError):  # It is not connected, but this ends `recvfrom`.
            server.socket.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        server.socket.close()


@contextmanager
def nginx_of_compose(name_server: NameServer, port: int) -> Iterator[str]:
    """Run nginx with upstream-compose.conf and this DNS server. Yield its URL."""
    upstream = (NGINX / "upstream-compose.conf").read_text()
    address = "{}:{}".format(*name_server.socket.getsockname())
    upstream = upstream.replace("127.0.0.11", address).replace("5558", str(port))
    with running_nginx(upstream) as nginx:
        yield nginx.url


def answer(replica: socket.socket) -> None:
    connection, _ = replica.accept()
    with connection, connection.makefile("rb") as request:
        assert list(iter(request.readline, b"\r\n"))
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


def get(connection: socket.socket) -> None:
    connection.sendall(get_request("/", None, close=True))


def is_asked(replica: socket.socket, seconds: float) -> bool:
    """Return whether nginx connects to a replica in this time."""
    return bool(select.select([replica], [], [], seconds)[0])


def test_replica_returns_with_another_address() -> None:
    find_or_skip(find_nginx)
    with ExitStack() as stack:
        before = stack.enter_context(socket.create_server((BEFORE, 0)))
        port = before.getsockname()[1]
        names = stack.enter_context(running_name_server(BEFORE))
        url = stack.enter_context(nginx_of_compose(names, port))
        with connect_to(url) as connection:
            get(connection)
            answer(before)
            assert read_until_closed(connection).startswith(b"HTTP/1.1 204 ")
        before.close()
        after = stack.enter_context(socket.create_server((AFTER, port)))
        names.addresses = (AFTER,)

        def answers() -> bool:
            with connect_to(url) as connection:
                get(connection)
                if is_asked(after, 0.1):
                    answer(after)
                return read_until_closed(connection).startswith(b"HTTP/1.1 204 ")

        wait_until(answers)


def test_request_to_an_address_that_is_gone_is_sent_to_another_replica() -> None:
    """Also if the addresses change while nginx waits for a connection."""
    find_or_skip(find_nginx)
    with ExitStack() as stack:
        other = stack.enter_context(socket.create_server((AFTER, 0)))
        port = other.getsockname()[1]
        gone = stack.enter_context(socket.create_server((BEFORE, port), backlog=0))
        with suppress(TimeoutError):  # Connections hang as soon as the backlog is full.
            for _ in range(10):
                stack.enter_context(socket.create_connection((BEFORE, port), timeout=0.2))
        names = stack.enter_context(running_name_server(BEFORE, AFTER))
        url = stack.enter_context(nginx_of_compose(names, port))
        for _ in range(30):
            waiting = stack.enter_context(connect_to(url))
            get(waiting)
            if not is_asked(other, 0.3):
                break
            answer(other)
            assert read_until_closed(waiting).startswith(b"HTTP/1.1 204 ")
        else:
            pytest.fail("nginx has sent no request to the address that is gone")
        names.addresses = (AFTER,)
        time.sleep(VALID)  # Until nginx asks for the addresses again, with the next request.
        later = stack.enter_context(connect_to(url))
        get(later)
        for _ in range(2):
            answer(other)
        for connection in (later, waiting):
            assert read_until_closed(connection).startswith(b"HTTP/1.1 204 ")
        assert gone.fileno() != -1
