"""A recording, fault-injecting HTTP proxy for the way between the service and its S3 store.

    with Proxy(store.endpoint_url) as proxy:
        proxy.faults.append(Fault("UploadPart", Respond(503, "SlowDown"), times=2))
        ...  # whatever talks to proxy.url
        assert [r.status for r in proxy.requests] == [200, 503, 503, 200, 200]

What no fault asks for goes through unchanged: heads as they came (`Host` is signed), informational
answers (`Expect: 100-continue` waits for the store's word), bodies piece by piece at the pace of
whoever reads them, and a disconnect on either side as a disconnect on the other. Every exchange
has a connection of its own to the store, so none fails because an idle one was closed.

The loop runs in a thread of its own. `faults` and `requests` are plain lists: append, clear and
iterate from any thread.
"""

import asyncio
import math
import socket
import struct
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from threading import Event, Thread
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import botocore.session
import h11

CHUNK = 64 * 1024


@dataclass(frozen=True)
class Respond:
    """Reads and drops the request, then answers an S3 error; the store is not asked."""

    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class ResetRequest:
    """Resets once so much of the request's body has come, or all; the store is not asked."""

    after_bytes: int = 0


@dataclass(frozen=True)
class Reset:
    """Resets after so much of the answer's body, or all of a shorter one.

    Of what was sent, the client may still lose what it has not read.
    """

    after_bytes: int = 0


@dataclass(frozen=True)
class Truncate:
    """Closes cleanly (FIN) after exactly so much of the answer's body, or all of a shorter one."""

    after_bytes: int = 0


@dataclass(frozen=True)
class Stall:
    """Sends nothing for a while after so much of the answer's body, if it is longer than that."""

    seconds: float
    after_bytes: int = 0


@dataclass(frozen=True)
class Drip:
    """Sends the answer's body slowly."""

    bytes_per_second: int


@dataclass(frozen=True)
class Delay:
    """Forwards the request only after a while."""

    seconds: float


@dataclass(frozen=True)
class Swallow:
    """Lets the store act, drops its answer and closes."""


@dataclass(frozen=True)
class IgnoreRange:
    """Forwards the request without its `Range`, for stores that do not check its signature."""


@dataclass(frozen=True)
class AddRange:
    """Forwards the request with a `Range`, for stores that do not check its signature."""

    value: str


@dataclass(frozen=True, eq=False)
class Withhold:
    """Reads none of the request's body until it is `told`, then what comes; the store is not asked.

    What came is `taken`, all of it once that has `ended`.
    """

    told: Event = field(default_factory=Event)
    taken: bytearray = field(default_factory=bytearray)
    ended: Event = field(default_factory=Event)


Action = (
    Respond
    | ResetRequest
    | Reset
    | Truncate
    | Stall
    | Drip
    | Delay
    | Swallow
    | IgnoreRange
    | AddRange
    | Withhold
)


@dataclass
class Fault:
    """When to do what: the `after` first matching requests pass, then every `every`-th is struck.

    `operation` None matches every request; `times` None never ends. Of several faults that are due
    for a request the first one strikes, the others wait.
    """

    operation: str | None
    action: Action
    times: int | None = 1
    after: int = 0
    every: int = 1
    seen: int = field(default=0, init=False)
    struck: int = field(default=0, init=False)

    def due(self, operation: str) -> bool:
        """Counts a request; true if it is one to strike."""
        if self.operation not in (None, operation):
            return False
        self.seen += 1
        past = self.seen - self.after - 1
        return past >= 0 and past % self.every == 0 and self.struck != self.times


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


@cache
def _operations() -> dict[tuple[str, int], list[tuple[set[str], str]]]:
    """What makes S3's operations, out of botocore's model of it.

    By method and depth of the path (1: a bucket, 2: an object): the parameters and headers that an
    operation needs, and its name, the most particular one first.
    """
    service = botocore.session.get_session().get_service_model("s3")
    operations = defaultdict(list)
    for model in map(service.operation_model, service.operation_names):
        path, _, query = model.http["requestUri"].partition("?")
        needed = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
        if shape := model.input_shape:
            for member in shape.required_members:
                match shape.members[member].serialization:
                    case {"location": "querystring" | "header", "name": name}:
                        needed.add(name.lower())
        if not model.deprecated:
            operations[model.http["method"], path.count("{")].append((needed, model.name))
    for fitting in operations.values():
        fitting.sort(key=lambda it: len(it[0]), reverse=True)
    return operations


def operation_name(method: str, target: str, headers: Iterable[str] = ()) -> str:
    """S3's name for a path-style request, or "Unknown"; names of headers in lower case."""
    url = urlsplit(target)
    bucket, _, key = url.path.lstrip("/").partition("/")
    given = {name.lower() for name, _ in parse_qsl(url.query, keep_blank_values=True)}
    given.update(headers)
    operations = _operations().get((method, bool(bucket) + bool(key)), [])
    return next((name for needed, name in operations if needed <= given), "Unknown")


class _Peer:
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


async def _drop_request(client: _Peer, exchange: Exchange, limit: float = math.inf) -> None:
    if client.h11.they_are_waiting_for_100_continue:
        await client.send(h11.InformationalResponse(status_code=100, headers=[]))
    while exchange.received < limit and isinstance(event := await client.receive(), h11.Data):
        exchange.received += len(event.data)


async def _take_late(client: _Peer, action: Withhold) -> None:
    try:
        while not action.told.is_set():  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0.02)
        while isinstance(event := await client.receive(), h11.Data):
            action.taken.extend(event.data)
    finally:
        action.ended.set()


async def _respond(client: _Peer, exchange: Exchange, status: int, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>Injected.</Message></Error>".encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    sent = b"" if exchange.method == "HEAD" else body
    exchange.status, exchange.sent, exchange.completed = status, len(sent), True
    await client.send(h11.Response(status_code=status, headers=headers))
    await client.send(h11.Data(sent))
    await client.send(h11.EndOfMessage())


async def _forward_request(
    client: _Peer, store: _Peer, exchange: Exchange, read: asyncio.Event
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


async def _forward_answer(
    store: _Peer, client: _Peer, exchange: Exchange, action: Action | None
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


class Proxy:
    """Listens on a free loopback port while it is entered; leaves no thread and no socket.

    The kernel keeps `ahead` bytes for it that it has not read, or as many as it sees fit.
    """

    def __init__(self, upstream_url: str, *, ahead: int | None = None) -> None:
        self._ahead = ahead
        upstream = urlsplit(upstream_url)
        self._upstream = upstream.hostname, upstream.port or 80
        self.faults: list[Fault] = []
        self.requests: list[Exchange] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._socket = _bound(0, self._ahead)
        self._loop = asyncio.SelectorEventLoop()
        self._thread = Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.plug()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self._socket.getsockname())

    @property
    def open_connections(self) -> int:
        """How many clients are connected; it may lag behind a client that has just gone."""
        return len(self._connections)

    def plug(self) -> None:
        """Takes connections again, on the same port."""
        self._run(self._plug())

    def unplug(self) -> None:
        """Resets all connections and refuses new ones."""
        self._run(self._unplug())

    def _run(self, change: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(change, self._loop).result(timeout=10)

    async def _plug(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=self._socket)

    async def _unplug(self) -> None:
        if self._server is None:
            return
        # asyncio leaks a connection if its server is closed while it is being accepted.
        self._loop.remove_reader(self._socket)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in self._connections:
                task.cancel()
            await asyncio.wait(others)
        port = self._socket.getsockname()[1]
        self._server.close()
        self._server = None
        self._socket = _bound(port, self._ahead)  # Nobody else gets the port meanwhile.

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Peer(h11.SERVER, reader, writer)
        task = self._loop.create_task(self._serve(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: client.reset())

    async def _serve(self, client: _Peer) -> None:
        try:
            while await self._exchange(client):
                client.h11.start_next_cycle()
            client.close()
        except* (OSError, EOFError, h11.ProtocolError):
            pass  # The connection is reset. What became of the exchange is on record.

    async def _exchange(self, client: _Peer) -> bool:
        """Serves one request; false if the connection is to be closed cleanly."""
        request = await client.receive()
        if not isinstance(request, h11.Request):
            return False
        method, target = request.method.decode(), request.target.decode()
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        exchange = Exchange(operation_name(method, target, headers), method, target, headers)
        self.requests.append(exchange)
        action = self._strike(exchange.operation)
        match action:
            case Respond(status, code):
                await _drop_request(client, exchange)
                await _respond(client, exchange, status, code)
            case ResetRequest(after):
                await _drop_request(client, exchange, after)
                raise ConnectionResetError("injected")
            case Delay(seconds):
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await client.watch()
                await self._relay(request, client, exchange, None)
            case IgnoreRange():
                kept = [header for header in request.headers if header[0] != b"range"]
                request = h11.Request(method=method, target=target, headers=kept)
                await self._relay(request, client, exchange, None)
            case AddRange(value):
                added = [*request.headers.raw_items(), (b"Range", value.encode())]
                request = h11.Request(method=method, target=target, headers=added)
                await self._relay(request, client, exchange, None)
            case Withhold():
                await _take_late(client, action)
                raise ConnectionResetError("injected")
            case _:
                await self._relay(request, client, exchange, action)
        return client.h11.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    def _strike(self, operation: str) -> Action | None:
        due = [fault for fault in list(self.faults) if fault.due(operation)]
        if not due:
            return None
        due[0].struck += 1
        return due[0].action

    async def _relay(
        self, request: h11.Request, client: _Peer, exchange: Exchange, action: Action | None
    ) -> None:
        store = _Peer(h11.CLIENT, *await asyncio.open_connection(*self._upstream))
        head = h11.Request(
            method=request.method, target=request.target, headers=request.headers.raw_items()
        )
        try:
            await store.send(head)
            async with asyncio.TaskGroup() as group:
                read = asyncio.Event()
                upload = group.create_task(_forward_request(client, store, exchange, read))
                try:
                    await _forward_answer(store, client, exchange, action)
                except BaseException:
                    exchange.completed = False
                    raise
                if exchange.completed:
                    await read.wait()
                upload.cancel()
            store.close()
        finally:
            store.reset()


def _bound(port: int, ahead: int | None) -> socket.socket:
    """A socket that holds a loopback port without listening: connecting to it is refused."""
    held = socket.socket()
    if ahead is not None:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ahead)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    return held
