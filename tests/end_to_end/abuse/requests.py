"""Requests by hand, and how their answers are read."""

import select
import socket
from collections.abc import Iterator

import h11

MIB = 1 << 20
UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"


def send_until_answered(connection: socket.socket, pieces: Iterator[bytes]) -> int:
    """Send until an answer or an end shows; how many bytes that took, 64 MiB at most."""
    sent = 0
    for piece in pieces:
        if select.select([connection], [], [], 0)[0]:
            break
        try:
            connection.sendall(piece)
        except ConnectionError:
            break
        sent += len(piece)
        assert sent <= 64 * MIB, "nobody stopped it"
    return sent


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def parsed(received: bytes) -> list[tuple[int, bytes]]:
    """Status and body of one answer after the other, all of them to GET or POST."""
    answers = []
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
        answers.append((head.status_code, body))
        received, _ = client.trailing_data
    return answers


LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
