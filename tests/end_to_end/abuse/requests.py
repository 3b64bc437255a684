"""Raw requests, and a parser for their responses."""

import select
import socket
from collections.abc import Iterator

import h11

MIB = 1 << 20
UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"


def send_until_response(connection: socket.socket, pieces: Iterator[bytes]) -> int:
    """Send until the server responds or closes the connection, and return the number of bytes sent.

    Fails after 64 MiB.
    """
    sent = 0
    for piece in pieces:
        if select.select([connection], [], [], 0)[0]:
            break
        try:
            connection.sendall(piece)
        except ConnectionError:
            break
        sent += len(piece)
        assert sent <= 64 * MIB, "the server does not end the request"
    return sent


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def parse_responses(received: bytes) -> list[tuple[int, bytes]]:
    """Return the status and body of each response. The requests must be GET or POST."""
    responses = []
    while received:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client.receive_data(received)
        head = client.next_event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        responses.append((head.status_code, body))
        received, _ = client.trailing_data
    return responses


LAST_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
