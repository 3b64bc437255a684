"""One request and its answer on their way through the proxy."""

import asyncio
import math
import socket
import struct
from dataclasses import dataclass

import h11

from tests.support.proxy.faults import Action, Drip, Reset, Stall, Swallow, Truncate, Withhold

CHUNK = 64 * 1024


@dataclass
class Exchange:
    """One request and what came of it; up to date before the bytes it counts are on the wire."""

    operation: str
    method: str
    target: str
    headers: dict[str, str]  # of the request, names in lower case
    status: int | None = None  # as sent to the client
    received: int = 0  # bytes of the request's body
    sent: int = 0  # bytes of the answer's body
    completed: bool = False  # the whole answer went to the client


class Peer:
    """One side of an exchange: h11's state machine on a stream."""

    def __init__(
        self,
        role: type[h11.CLIENT | h11.SERVER],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.h11 = h11.Connection(role)
        self._reader = reader
        self._writer = writer
        # What is drained is then in the kernel's hands: one side's back-pressure is the other's.
        writer.transport.set_write_buffer_limits(high=0)

    def poll(self) -> h11.Event | None:
        """The next event, if all of it is here."""
        event = self.h11.next_event()
        return event if isinstance(event, h11.Event) else None

    async def receive(self) -> h11.Event:
        while (event := self.poll()) is None:
            self.h11.receive_data(await self._reader.read(CHUNK))
        return event

    async def send(self, event: h11.Event) -> None:
        self._writer.write(self.h11.send(event) or b"")
        await self._writer.drain()

    async def watch(self) -> None:
        """Raises EOFError or OSError once the other side has gone; never returns.

        What comes meanwhile is kept; after 64 KiB of that, it no longer looks.
        """
        self.h11.receive_data(await self._reader.readexactly(CHUNK))
        await asyncio.Event().wait()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Sends RST instead of FIN; without effect once closed."""
        if not self._writer.is_closing():
            connection = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()


async def drop_request(client: Peer, exchange: Exchange, limit: float = math.inf) -> None:
    if client.h11.they_are_waiting_for_100_continue:
        await client.send(h11.InformationalResponse(status_code=100, headers=[]))
    while exchange.received < limit and isinstance(event := await client.receive(), h11.Data):
        exchange.received += len(event.data)


async def take_late(client: Peer, action: Withhold) -> None:
    try:
        while not action.told.is_set():  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0.02)
        while isinstance(event := await client.receive(), h11.Data):
            action.taken.extend(event.data)
    finally:
        action.ended.set()


async def respond(client: Peer, exchange: Exchange, status: int, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>Injected.</Message></Error>".encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    sent = b"" if exchange.method == "HEAD" else body
    exchange.status, exchange.sent, exchange.completed = status, len(sent), True
    await client.send(h11.Response(status_code=status, headers=headers))
    await client.send(h11.Data(sent))
    await client.send(h11.EndOfMessage())


async def forward_request(
    client: Peer, store: Peer, exchange: Exchange, read: asyncio.Event
) -> None:
    """Forwards the body, then watches for the client to go."""
    refused = False
    while not read.is_set():
        event = await client.receive()
        if isinstance(event, h11.Data):
            exchange.received += len(event.data)
        if not refused:
            try:
                await store.send(event)
            except OSError:
                refused = True  # It has answered; but some clients look only after sending all.
        if isinstance(event, h11.EndOfMessage):
            read.set()
    await client.watch()


def _paced(action: Action | None, sent: int, data: bytes) -> list[tuple[float, bytes]]:
    """The next bytes of a body as the action lets them go: each piece after a wait in seconds."""
    match action:
        case Reset(after) | Truncate(after):
            return [(0, data[: after - sent])]
        case Stall(seconds, after) if sent <= after < sent + len(data):
            return [(0, data[: after - sent]), (seconds, data[after - sent :])]
        case Drip(rate):
            step = max(1, rate // 20)
            pieces = (data[i : i + step] for i in range(0, len(data), step))
            return [(len(piece) / rate, piece) for piece in pieces]
    return [(0, data)]


def _again(head: h11.Response | h11.InformationalResponse) -> h11.Event:
    """The same head to send on, whatever version of HTTP it came in."""
    headers = head.headers.raw_items()
    return type(head)(status_code=head.status_code, headers=headers, reason=head.reason)


async def forward_answer(
    store: Peer, client: Peer, exchange: Exchange, action: Action | None
) -> None:
    limit = action.after_bytes if isinstance(action, Reset | Truncate) else math.inf
    event: h11.Event | None = None
    ahead: h11.Event | None = None
    while not isinstance(event, h11.EndOfMessage) and (
        exchange.status is None or exchange.sent < limit
    ):
        event = ahead or await store.receive()
        # Only the event after the last byte's tells that it was the last. The record has to tell
        # before that byte goes out, since the client may look there at once.
        ahead = None if isinstance(event, h11.EndOfMessage) else store.poll()
        whole = isinstance(ahead, h11.EndOfMessage) and limit == math.inf
        match event:
            case h11.InformationalResponse():
                await client.send(_again(event))
            case _ if isinstance(action, Swallow):
                pass
            case h11.Response():
                exchange.status, exchange.completed = event.status_code, whole
                await client.send(_again(event))
            case h11.Data():
                pieces = _paced(action, exchange.sent, event.data)
                while pieces:
                    wait, piece = pieces.pop(0)
                    await asyncio.sleep(wait)
                    exchange.sent += len(piece)
                    exchange.completed = whole and not pieces
                    await client.send(h11.Data(piece))
            case h11.EndOfMessage() if limit == math.inf:
                await client.send(event)
    if isinstance(action, Reset):
        raise ConnectionResetError("injected")
