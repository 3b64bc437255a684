"""One request and its response on their way through the proxy."""

import asyncio
import math
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

import h11

from tests.support.proxy.faults import (
    Action,
    Delay,
    DropResponse,
    DropSilentRequest,
    Hold,
    PauseRequest,
    Reset,
    Stall,
    Throttle,
    Truncate,
)

CHUNK_SIZE = 64 * 1024


@dataclass
class Exchange:
    """The record of a request and its response. It is updated before bytes are sent on."""

    operation: str
    method: str
    target: str
    headers: dict[str, str]  # of the request, names in lower case
    status: int | None = None  # as sent to the client
    received: int = 0  # bytes of the request's body
    sent: int = 0  # bytes of the response's body
    completed: bool = False  # the client was sent the complete response


class Peer:
    """One side of an exchange: h11's state machine and a stream."""

    def __init__(
        self,
        role: type[h11.CLIENT | h11.SERVER],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.h11 = h11.Connection(role)
        self._reader = reader
        self._writer = writer
        # Buffer nothing here, so that back-pressure from one side reaches the other.
        writer.transport.set_write_buffer_limits(high=0)

    def poll(self) -> h11.Event | None:
        """Return the next event if it has been received completely."""
        event = self.h11.next_event()
        return event if isinstance(event, h11.Event) else None

    async def receive(self) -> h11.Event:
        while (event := self.poll()) is None:
            self.h11.receive_data(await self._reader.read(CHUNK_SIZE))
        return event

    async def send(self, event: h11.Event) -> None:
        self._writer.write(self.h11.send(event) or b"")
        await self._writer.drain()

    async def wait_for_disconnect(self) -> None:
        """Raise EOFError or OSError when the peer disconnects. Never return.

        Data that arrives meanwhile is kept. After 64 KiB of it, a disconnect is not noticed.
        """
        self.h11.receive_data(await self._reader.readexactly(CHUNK_SIZE))
        await asyncio.Event().wait()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with RST instead of FIN. Without effect if the connection is closed already."""
        if not self._writer.is_closing():
            connection = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()


async def drop_request(client: Peer, exchange: Exchange, limit: float = math.inf) -> None:
    if client.h11.they_are_waiting_for_100_continue:
        await client.send(h11.InformationalResponse(status_code=100, headers=[]))
    while exchange.received < limit and isinstance(event := await client.receive(), h11.Data):
        exchange.received += len(event.data)


async def wait_to_forward(client: Peer, action: Delay | Hold) -> None:
    waited = False
    while not (waited if isinstance(action, Delay) else action.release.is_set()):
        with suppress(TimeoutError):
            async with asyncio.timeout(action.seconds if isinstance(action, Delay) else 0.02):
                await client.wait_for_disconnect()
        waited = True


async def read_after_pause(client: Peer, action: PauseRequest) -> None:
    try:
        while not action.resume.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.02)
        while isinstance(event := await client.receive(), h11.Data):
            action.received.extend(event.data)
    finally:
        action.ended.set()


async def read_until_cut(client: Peer, exchange: Exchange) -> bytes:
    """Return what arrives of the request's body until the client disconnects."""
    body = bytearray()
    with suppress(OSError, EOFError, h11.ProtocolError):
        while isinstance(event := await client.receive(), h11.Data):
            exchange.received += len(event.data)
            body += event.data
    return bytes(body)


async def respond(client: Peer, exchange: Exchange, status: int, code: str) -> None:
    error = f"<Error><Code>{code}</Code><Message>Injected.</Message></Error>"
    body = error.encode() if code else b""
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    sent = b"" if exchange.method == "HEAD" else body
    exchange.status, exchange.sent, exchange.completed = status, len(sent), True
    await client.send(h11.Response(status_code=status, headers=headers))
    await client.send(h11.Data(sent))
    await client.send(h11.EndOfMessage())


async def forward_request(
    client: Peer, store: Peer, exchange: Exchange, read: asyncio.Event, action: Action | None
) -> None:
    """Forward the request's body. Then wait until the client disconnects."""
    store_closed = False
    max_silence = action.seconds if isinstance(action, DropSilentRequest) else None
    while not read.is_set():
        async with asyncio.timeout(max_silence):
            event = await client.receive()
        if isinstance(event, h11.Data):
            exchange.received += len(event.data)
        if not store_closed:
            try:
                await store.send(event)
            except OSError:
                # The store has responded already. Read on, because some clients do not read the
                # response before they have sent everything.
                store_closed = True
        if isinstance(event, h11.EndOfMessage):
            read.set()
    await client.wait_for_disconnect()


def _schedule(action: Action | None, sent: int, data: bytes) -> list[tuple[float, bytes]]:
    """Split the next bytes of a body as the action requires. Each chunk has a wait in seconds."""
    match action:
        case Reset(after) | Truncate(after_bytes=after):
            return [(0, data[: after - sent])]
        case Stall(seconds, after) if sent <= after < sent + len(data):
            return [(0, data[: after - sent]), (seconds, data[after - sent :])]
        case Throttle(rate):
            step = max(1, rate // 20)
            chunks = (data[i : i + step] for i in range(0, len(data), step))
            return [(len(chunk) / rate, chunk) for chunk in chunks]
    return [(0, data)]


def _copy_head(head: h11.Response | h11.InformationalResponse) -> h11.Event:
    """Copy a head to send it on. h11 sends HTTP/1.1 only, whatever version the head came in."""
    headers = head.headers.raw_items()
    return type(head)(status_code=head.status_code, headers=headers, reason=head.reason)


async def forward_response(
    store: Peer, client: Peer, exchange: Exchange, action: Action | None
) -> None:
    limit = action.after_bytes if isinstance(action, Reset | Truncate) else math.inf
    event: h11.Event | None = None
    next_event: h11.Event | None = None
    while not isinstance(event, h11.EndOfMessage) and (
        exchange.status is None or exchange.sent < limit
    ):
        event = next_event or await store.receive()
        # Only the event after the last bytes shows that they were the last. The record has to show
        # this before the bytes are sent, because a test may check it as soon as it has them.
        next_event = None if isinstance(event, h11.EndOfMessage) else store.poll()
        is_last = isinstance(next_event, h11.EndOfMessage) and limit == math.inf
        match event:
            case h11.InformationalResponse():
                await client.send(_copy_head(event))
            case _ if isinstance(action, DropResponse):
                pass
            case h11.Response():
                exchange.status, exchange.completed = event.status_code, is_last
                await client.send(_copy_head(event))
            case h11.Data():
                chunks = _schedule(action, exchange.sent, event.data)
                while chunks:
                    wait, chunk = chunks.pop(0)
                    await asyncio.sleep(wait)
                    exchange.sent += len(chunk)
                    exchange.completed = is_last and not chunks
                    await client.send(h11.Data(chunk))
            case h11.EndOfMessage() if limit == math.inf:
                await client.send(event)
    if isinstance(action, Truncate):
        await asyncio.sleep(action.pause)
    if isinstance(action, Reset):
        raise ConnectionResetError("injected")
