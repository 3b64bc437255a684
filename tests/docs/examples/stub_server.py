"""A server that sends fixed responses, most of which the service would never send."""

import queue
import re
import socketserver
from contextlib import suppress
from uuid import uuid4

from tests.docs.examples.sandbox import http_response, problem_response

CHUNKED_RANGE = (
    b"HTTP/1.1 206 Partial Content\r\n"
    b"Content-Range: bytes 0-18/19\r\nTransfer-Encoding: chunked\r\n\r\n"
)
VALID_ID = str(uuid4()).encode()
RESPONSES = {
    "400": problem_response("400 Bad Request", "Send a header."),
    "422": problem_response("422 Unprocessable Content", "Send it again."),
    "503": problem_response("503 Service Unavailable", 'Try "later".'),
    "redirect": http_response("307 Temporary Redirect", b"", "Location: /html/"),
    "html": http_response("502 Bad Gateway", b"<html>\x1b[31m</html>", "Content-Type: text/html"),
    "deep": http_response("400 Bad Request", b"[" * 60_000),
    "escape": problem_response("400 Bad Request", "\x1b]0;owned\x07\u202e\ud800red\nblue"),
    "no-id": http_response("200 OK", b"\x1b[31mWelcome to the hotel's network"),
    "hangs-up": b"",
    "noise": b"SSH-2.0-OpenSSH_9.2\r\n",
    "null": http_response("502 Bad Gateway", b"null"),
    "longer-chunks": CHUNKED_RANGE + b"14\r\n%b\r\n0\r\n\r\n" % bytes(20),
    "all-without-an-end": CHUNKED_RANGE + b"13\r\n%b\r\n" % bytes(range(19)),
    "tampered": http_response("200 OK", b"not what was signed"),
    "truncated": http_response("200 OK", b"AES", length=1000),
    "truncated-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nAES\r\n",
    "silent": b"",
    "stalls": http_response("200 OK", b"AES", length=1000),
    "endless": b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
}


class StubHandler(socketserver.StreamRequestHandler):
    """Sends the response that the first path segment names.

    If that response is a broken download, an upload to the same URL succeeds, because curl.sh
    uploads before it downloads.
    """

    server: "StubServer"

    def handle(self) -> None:
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        method, path, _ = head.split(b" ", 2)
        name = path.split(b"/")[1].decode()
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if b"100-continue" in head:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.rfile.read(int(length[1]) if length else 0)
        self.server.request_heads.put(head)
        response = RESPONSES[name]
        if method == b"POST" and name in ("tampered", "truncated", "stalls"):
            response = http_response("200 OK", VALID_ID)
        with suppress(OSError):  # The client may close the connection before the response ends.
            self.wfile.write(response)
            while name == "endless":
                self.wfile.write(bytes(65_536))
            if name in ("silent", "stalls"):
                self.rfile.read(1)


class StubServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.request_heads: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def url(self, response_name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{response_name}"
