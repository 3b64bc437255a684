"""The proxy server: accepts connections and applies the faults to their requests."""

import asyncio
import math
import re
import socket
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import h11

from tests.support.proxy.exchange import (
    Exchange,
    Peer,
    drop_request,
    forward_request,
    forward_response,
    read_after_pause,
    read_until_cut,
    respond,
    wait_to_forward,
)
from tests.support.proxy.faults import (
    Action,
    AddRange,
    Delay,
    DropElement,
    DropHeader,
    Fault,
    Hold,
    KeepCutBody,
    PauseRequest,
    ResetRequest,
    Respond,
)
from tests.support.proxy.operations import operation_name


class Proxy:
    """Listens on a free loopback port inside its block. Leaves no thread and no socket behind.

    `probes` are the requests for probe objects, with which the service tries what the store keeps.
    `requests` are all others. `receive_buffer` is the size of the kernel's receive buffers, by
    default the system's. No object meets more than `max_faults` faults.
    """

    def __init__(self, upstream_url: str, *, receive_buffer: int | None = None) -> None:
        self.max_faults = math.inf
        self._faults_met: Counter[str] = Counter()
        self._receive_buffer = receive_buffer
        upstream = urlsplit(upstream_url)
        self._upstream = upstream.hostname, upstream.port or 80
        self.faults: list[Fault] = []
        self.requests: list[Exchange] = []
        self.probes: list[Exchange] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._socket = _bound(0, self._receive_buffer)
        self._loop = asyncio.SelectorEventLoop()
        self._thread = Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self._socket.getsockname())

    @property
    def open_connections(self) -> int:
        """How many clients are connected. A client that has just disconnected may still count."""
        return len(self._connections)

    def enable(self) -> None:
        """Accept connections again, on the same port."""
        self._run(self._enable())

    def disable(self) -> None:
        """Reset all connections and refuse new ones."""
        self._run(self._disable())

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    async def _enable(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=self._socket)

    async def _disable(self) -> None:
        if self._server is None:
            return
        # asyncio leaks a connection if the server is closed while accepting it.
        self._loop.remove_reader(self._socket)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in self._connections:
                task.cancel()
            await asyncio.wait(others)
        port = self._socket.getsockname()[1]
        self._server.close()
        self._server = None
        self._socket = _bound(port, self._receive_buffer)  # Keep the port.

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
            pass  # The connection is reset. The exchange is already recorded.

    async def _exchange(self, client: Peer) -> bool:
        """Serve one request. Return false if the connection should be closed cleanly."""
        request = await client.receive()
        if not isinstance(request, h11.Request):
            return False
        method, target = request.method.decode(), request.target.decode()
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        exchange = Exchange(operation_name(method, target, headers), method, target, headers)
        is_probe = "/probe-" in unquote(target)
        (self.probes if is_probe else self.requests).append(exchange)
        action = self._next_action(exchange)
        match action:
            case Respond(status, code, after_bytes):
                await drop_request(client, exchange, after_bytes)
                await respond(client, exchange, status, code)
                if client.h11.their_state is h11.SEND_BODY:
                    await drop_request(client, exchange)
            case ResetRequest(after):
                await drop_request(client, exchange, after)
                raise ConnectionResetError("injected")
            case Delay() | Hold():
                await wait_to_forward(client, action)
                await self._relay(request, client, exchange, None)
            case DropHeader() | AddRange():
                await self._relay(_changed(request, action), client, exchange, None)
            case DropElement(name):
                body = await read_until_cut(client, exchange)
                body = re.sub(rf"<{name}>.*?</{name}>".encode(), b"", body, flags=re.DOTALL)
                await self._replace_body(request, body, client, exchange)
            case KeepCutBody(kept):
                await self._keep_cut_body(request, client, exchange)
                kept.set()
            case PauseRequest():
                await read_after_pause(client, action)
                raise ConnectionResetError("injected")
            case _:
                await self._relay(request, client, exchange, action)
        return client.h11.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    def _next_action(self, exchange: Exchange) -> Action | None:
        path = urlsplit(exchange.target).path
        due = [fault for fault in list(self.faults) if fault.count(exchange.operation)]
        if not due or self._faults_met[path] >= self.max_faults:
            return None
        self._faults_met[path] += 1
        due[0].injected += 1
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
                upload = group.create_task(forward_request(client, store, exchange, read, action))
                try:
                    await forward_response(store, client, exchange, action)
                except BaseException:
                    exchange.completed = False
                    raise
                if exchange.completed:
                    await read.wait()
                upload.cancel()
            store.close()
        finally:
            store.reset()

    async def _keep_cut_body(self, request: h11.Request, client: Peer, exchange: Exchange) -> None:
        """Send what arrives of a request until its client disconnects, which it has to do."""
        body = await read_until_cut(client, exchange)
        with suppress(OSError, h11.ProtocolError):
            await self._replace_body(request, body, client, exchange)

    async def _replace_body(
        self, request: h11.Request, body: bytes, client: Peer, exchange: Exchange
    ) -> None:
        """Send a request with another body, and forward the response."""
        store = Peer(h11.CLIENT, *await asyncio.open_connection(*self._upstream))
        try:
            await store.send(_with_header(request, "Content-Length", str(len(body))))
            await store.send(h11.Data(body))
            await store.send(h11.EndOfMessage())
            await forward_response(store, client, exchange, None)
            store.close()
        finally:
            store.reset()


def _changed(request: h11.Request, action: DropHeader | AddRange) -> h11.Request:
    if isinstance(action, DropHeader):
        return _with_header(request, action.name, None)
    return _with_header(request, "Range", action.value)


def _with_header(request: h11.Request, name: str, value: str | None) -> h11.Request:
    """Return a request with another value of a header, or without the header."""
    headers = [header for header in request.headers if header[0] != name.lower().encode()]
    if value is not None:
        headers.append((name.encode(), value.encode()))
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _bound(port: int, receive_buffer: int | None) -> socket.socket:
    """Return a socket that reserves a loopback port. Without listening, it refuses connections."""
    reserved = socket.socket()
    if receive_buffer is not None:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", port))
    return reserved
