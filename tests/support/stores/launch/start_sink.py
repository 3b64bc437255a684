"""An S3 server that discards what it gets: `python start_sink.py FILE_DESCRIPTOR OBJECT_SIZE`.

It accepts uploads, also multipart uploads. Under every key it has a bundle of zeros that needs no
proof. Its size is the number at the end of the key, in hex, but at most OBJECT_SIZE. Only the tags
of probe objects are kept, because the service checks that. The server uses so little CPU time and
memory that a test can measure the service alone. servers.py starts this file in a separate process.
"""

import asyncio
import re
import socket
import sys
from urllib.parse import parse_qsl

import uvloop

READ_SIZE = 256 * 1024
SEGMENT_SIZE = 1400
"""Bytes of a TCP segment, as on the internet.

On loopback, segments have 64 KiB. That is as much as a receiver takes which reads little at a time,
so it would often stall for 0.2 s.
"""

SEND_BUFFER = 256 * 1024
"""Bytes. Otherwise, the kernel keeps up to 4 MiB for each slow download.

With 500 of them, it would run out of memory for TCP, and delay all connections of this machine. A
real S3 store is on another machine.
"""

CREATED = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
COMPLETED = b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>"
NOTHING_LISTED = b"<ListMultipartUploadsResult></ListMultipartUploadsResult>"
TAGS = (
    b"<Tagging><TagSet><Tag><Key>expires-at</Key><Value>9999999999</Value></Tag></TagSet></Tagging>"
)
HEAD = (
    b'HTTP/1.1 200 OK\r\nETag: "1"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n'
    b"Content-Length: %d\r\n\r\n"
)


class Sink:
    """All connections of the server."""

    def __init__(self, object_size: int) -> None:
        self._bundle = memoryview(bytes(object_size))
        self._probe_tags: dict[bytes, bytes] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
                remaining = int(length[1]) if length else 0
                method, target = head.split(b" ", 2)[:2]
                if b"/probe-" in target and method == b"PUT":
                    body = await reader.readexactly(remaining)
                    self._keep_tags(target, head, body)
                    remaining = 0
                while remaining:
                    data = await reader.read(min(remaining, READ_SIZE))
                    if not data:
                        raise ConnectionError
                    remaining -= len(data)
                response = self._response_body(method, target)
                writer.write(HEAD % len(response))
                for start in range(0, len(response), READ_SIZE):
                    writer.write(response[start : start + READ_SIZE])
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _keep_tags(self, target: bytes, head: bytes, body: bytes) -> None:
        """Keep the tags of a PutObjectTagging, or of a PutObject."""
        path, _, query = target.partition(b"?")
        if query.startswith(b"tagging"):
            self._probe_tags[path] = body
            return
        header = re.search(rb"(?i)\r\nx-amz-tagging: *([^\r]*)", head)
        tags = parse_qsl(header[1].decode()) if header else []
        tag_set = "".join(
            f"<Tag><Key>{key}</Key><Value>{value}</Value></Tag>" for key, value in tags
        )
        self._probe_tags[path] = f"<Tagging><TagSet>{tag_set}</TagSet></Tagging>".encode()

    def _response_body(self, method: bytes, target: bytes) -> bytes | memoryview:
        path, _, query = target.partition(b"?")
        match method:
            case b"POST":
                return CREATED if query.startswith(b"uploads") else COMPLETED
            case b"GET" if query.startswith(b"tagging"):
                return self._probe_tags.get(path, TAGS)
            case b"GET" if query.startswith(b"uploads"):
                return NOTHING_LISTED
            case b"GET" if path.count(b"/") > 1:
                return self._bundle[: int(path[-12:], 16)]
        return b""


async def main(descriptor: int, object_size: int) -> None:
    listener = socket.socket(fileno=descriptor)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_SIZE)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sink = Sink(object_size)
    server = await asyncio.start_server(sink.serve, sock=listener, limit=READ_SIZE, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
