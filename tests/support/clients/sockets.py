"""HTTP over plain sockets, for tests that need control of every byte."""

import select
import socket
from pathlib import Path
from urllib.parse import urlsplit

import h11

SEGMENT_SIZE = 1400
"""Bytes of a TCP segment, as on the internet.

On loopback, segments have 64 KiB. While the receive buffer is smaller than two of them, a sender
may wait for 0.2 s although there is room for less.
"""


def connect_to(url: str, source: str = "") -> socket.socket:
    """Open a connection, from the address `source` of this machine if it is given."""
    address = urlsplit(url)
    assert address.hostname is not None
    connection = socket.create_connection(
        (address.hostname, address.port or 80), timeout=15, source_address=(source, 0)
    )
    # If no server listens on the port, the kernel may choose the same port for this end. The
    # socket is then connected to itself (RFC 9293, section 3.5, simultaneous open).
    if connection.getsockname() == connection.getpeername():
        connection.close()
        raise ConnectionRefusedError
    return connection


def peer_has_closed(connection: socket.socket) -> bool:
    """Return whether the peer has closed or reset the connection, without reading from it."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def read_until_closed(connection: socket.socket) -> bytes:
    """Read until the server closes the connection. Raises `ConnectionError` if it is reset."""
    received = bytearray()
    while data := connection.recv(65_536):
        received += data
    return bytes(received)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or fewer if the connection is closed before."""
    received = bytearray()
    while len(received) < size and (data := connection.recv(size - len(received))):
        received += data
    return bytes(received)


def read_response(connection: socket.socket) -> bytes:
    """Read one complete response to a GET or POST.

    Raises `ConnectionError` if the connection is reset, and `h11.RemoteProtocolError` if it is
    closed too early.
    """
    client, received = h11.Connection(h11.CLIENT), bytearray()
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            received += (data := connection.recv(65_536))
            client.receive_data(data)
    return bytes(received)


def raw_request(url: str, request: bytes) -> bytes:
    """Send these bytes, and read until the server closes the connection."""
    with connect_to(url) as connection:
        connection.sendall(request)
        return read_until_closed(connection)


def begin_upload(
    url: str, first_bytes: bytes, declared_size: int, headers: bytes = b""
) -> socket.socket:
    """Send the head of an upload of `declared_size` bytes, but only the first bytes of its body."""
    connection = connect_to(url)
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % declared_size
    connection.sendall(head + headers + b"\r\n" + first_bytes)
    return connection


def begin_chunked_upload(url: str, first_bytes: bytes, headers: bytes = b"") -> socket.socket:
    """Send the head of an upload without a length, and its first chunk, but not its end."""
    connection = connect_to(url)
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + headers
    connection.sendall(head + b"\r\n%x\r\n%b\r\n" % (len(first_bytes), first_bytes))
    return connection


def connected_ports(url: str) -> set[int]:
    """Return the ports of the clients that are connected to this server on this machine."""
    server_port = int(url.rsplit(":", 1)[1])
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if int(local.split(":")[1], 16) == server_port and state == "01":
            ports.add(int(remote.split(":")[1], 16))
    return ports


def problem_code(response: bytes) -> bytes:
    """Return the error code of a problem response."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    return body.split(b'"code": "')[1].split(b'"')[0]
