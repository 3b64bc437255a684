"""The proxy itself: it listens, and looks up the fault of each request."""

import asyncio
import socket
from collections.abc import Coroutine
from contextlib import suppress
from threading import Thread
from typing import Any, Self
from urllib.parse import urlsplit

import h11

from tests.support.proxy.exchange import (
    Exchange,
    Peer,
    drop_request,
    forward_answer,
    forward_request,
    respond,
    take_late,
)
from tests.support.proxy.faults import (
    Action,
    AddRange,
    Delay,
    Fault,
    IgnoreRange,
    ResetRequest,
    Respond,
    Withhold,
)
from tests.support.proxy.operations import operation_name


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
        client = Peer(h11.SERVER, reader, writer)
        task = self._loop.create_task(self._serve(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: client.reset())

    async def _serve(self, client: Peer) -> None:
        try:
            while await self._exchange(client):
                client.h11.start_next_cycle()
            client.close()
        except* (OSError, EOFError, h11.ProtocolError):
            pass  # The connection is reset. What became of the exchange is on record.

    async def _exchange(self, client: Peer) -> bool:
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
                await drop_request(client, exchange)
                await respond(client, exchange, status, code)
            case ResetRequest(after):
                await drop_request(client, exchange, after)
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
                await take_late(client, action)
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
        self, request: h11.Request, client: Peer, exchange: Exchange, action: Action | None
    ) -> None:
        store = Peer(h11.CLIENT, *await asyncio.open_connection(*self._upstream))
        head = h11.Request(
            method=request.method, target=request.target, headers=request.headers.raw_items()
        )
        try:
            await store.send(head)
            async with asyncio.TaskGroup() as group:
                read = asyncio.Event()
                upload = group.create_task(forward_request(client, store, exchange, read))
                try:
                    await forward_answer(store, client, exchange, action)
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
