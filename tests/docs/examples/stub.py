"""A server that follows a script instead of the contract."""

import queue
import re
import socketserver
from contextlib import suppress
from uuid import uuid4

from tests.docs.examples.desk import answer, problem

REAL_ID = str(uuid4()).encode()
PLAYS = {
    "400": problem("400 Bad Request", "Send a header."),
    "422": problem("422 Unprocessable Content", "Send it again."),
    "503": problem("503 Service Unavailable", 'Try "later".'),
    "redirect": answer("307 Temporary Redirect", b"", "Location: /html/"),
    "html": answer("502 Bad Gateway", b"<html>\x1b[31m</html>", "Content-Type: text/html"),
    "deep": answer("400 Bad Request", b"[" * 60_000),
    "escape": problem("400 Bad Request", "\x1b]0;owned\x07\u202e\ud800red\nblue"),
    "no-id": answer("200 OK", b"\x1b[31mWelcome to the hotel's network"),
    "hangs-up": b"",
    "noise": b"SSH-2.0-OpenSSH_9.2\r\n",
    "tampered": answer("200 OK", b"not what was signed"),
    "truncated": answer("200 OK", b"AES", length=1000),
    "truncated-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nAES\r\n",
    "silent": b"",
    "stalls": answer("200 OK", b"AES", length=1000),
    "endless": b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
}


class Player(socketserver.StreamRequestHandler):
    """Plays what its first path segment asks for; an upload by curl.sh's later acts succeeds."""

    server: "Stub"

    def handle(self) -> None:
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        method, path, _ = head.split(b" ", 2)
        play = path.split(b"/")[1].decode()
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if b"100-continue" in head:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.rfile.read(int(length[1]) if length else 0)
        self.server.heads.put(head)
        script = PLAYS[play]
        if method == b"POST" and play in ("tampered", "truncated", "stalls"):
            script = answer("200 OK", REAL_ID)
        with suppress(OSError):  # the client may go when it has heard enough
            self.wfile.write(script)
            while play == "endless":
                self.wfile.write(bytes(65_536))
            if play in ("silent", "stalls"):
                self.rfile.read(1)


class Stub(socketserver.ThreadingTCPServer):
    """A server that does what no real one does, or should."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Player)
        self.heads: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def url(self, play: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{play}"
