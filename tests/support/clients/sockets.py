"""HTTP by hand, where the wire itself matters."""

import select
import socket
from pathlib import Path
from urllib.parse import urlsplit

import h11


def dial(url: str, source: str = "") -> socket.socket:
    """Connect, from an address of this machine if one is given."""
    address = urlsplit(url)
    assert address.hostname is not None
    connection = socket.create_connection(
        (address.hostname, address.port or 80), timeout=15, source_address=(source, 0)
    )
    # Where nobody listens, the kernel may choose this very port to connect from: the connection is
    # then its own peer, which TCP allows (RFC 9293, section 3.5, simultaneous open).
    if connection.getsockname() == connection.getpeername():
        connection.close()
        raise ConnectionRefusedError
    return connection


def hung_up(connection: socket.socket) -> bool:
    """Say whether the other end has closed or reset the connection, without reading from it."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection; `ConnectionError` if it is reset."""
    received = bytearray()
    while data := connection.recv(65_536):
        received += data
    return bytes(received)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes, however many reads it takes; fewer if the connection ends before."""
    received = bytearray()
    while len(received) < size and (data := connection.recv(size - len(received))):
        received += data
    return bytes(received)


def read_answer(connection: socket.socket) -> bytes:
    """Read one whole answer to a GET or POST, however many reads it takes.

    Raises `ConnectionError` if it is reset, and `h11.RemoteProtocolError` if it ends too early.
    """
    client, received = h11.Connection(h11.CLIENT), bytearray()
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            received += (data := connection.recv(65_536))
            client.receive_data(data)
    return bytes(received)


def raw_request(url: str, request: bytes) -> bytes:
    """Send these bytes, and read all that comes until the server ends the connection."""
    with dial(url) as connection:
        connection.sendall(request)
        return read_all(connection)


def begin_upload(url: str, beginning: bytes, declared: int) -> socket.socket:
    """Send the head of an upload of `declared` bytes, and only the beginning of its body."""
    connection = dial(url)
    head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % declared
    connection.sendall(head + beginning)
    return connection


def server_peers(url: str) -> set[int]:
    """The ports of the clients whose connections this machine still has established."""
    own = int(url.rsplit(":", 1)[1])
    peers = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if int(local.split(":")[1], 16) == own and state == "01":
            peers.add(int(remote.split(":")[1], 16))
    return peers


def problem_code(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    return body.split(b'"code": "')[1].split(b'"')[0]
