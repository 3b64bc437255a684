"""Malicious clients, in a separate process, so that they do not slow down the measuring test."""

import asyncio
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvloop

from tests.support.clients.sockets import SEGMENT_SIZE, peer_has_closed

MAX_DURATION = 400.0
"""Seconds after which the attacks end by themselves."""

STILL_OPEN = "still open"
"""The outcome of a connection that was open when the attack was stopped."""


@dataclass(frozen=True)
class Attack:
    """`count` clients that send a prefix, and then the payload once every `interval` seconds.

    With an empty payload, they neither send nor read after the prefix. With `reconnect`, a client
    whose connection ends opens another one at once. With `flood`, clients send the prefix again and
    again without a pause, and read every response. With a `read_rate`, they send only the prefix,
    and read that many bytes per second of the response.
    """

    count: int
    prefix: str
    payload: str = "x"
    interval: float = 0.5
    reconnect: bool = True
    flood: bool = False
    read_rate: int = 0


@dataclass
class Report:
    """How an attack's connections ended: with a status or "reset", and after how many seconds."""

    outcomes: list[tuple[str, float]] = field(default_factory=list)
    sent: int = 0  # payloads, bytes with `flood`, or bytes that were read with a `read_rate`

    def __str__(self) -> str:
        times = [seconds for outcome, seconds in self.outcomes if outcome != STILL_OPEN]
        duration = f" after {min(times):.1f} to {max(times):.1f} s" if times else ""
        return f"{dict(self.counts)}{duration}, {self.sent} payloads sent"

    @property
    def counts(self) -> Counter[str]:
        return Counter(outcome for outcome, _ in self.outcomes)


class AttackProcess:
    """The process that runs the attacks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self, *, timeout: float = 0) -> list[Report]:
        """Stop the attacks if they do not end within `timeout` seconds. Return their reports."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        output, _ = self._process.communicate(timeout=20)
        return [Report(**report) for report in json.loads(output)]


@contextmanager
def running_attacks(url: str, *attacks: Attack) -> Iterator[AttackProcess]:
    """Run attacks until the block ends. The block starts once all clients sent their prefix."""
    specification = json.dumps([asdict(attack) for attack in attacks])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.clients.malicious", url, specification],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        watchdog = threading.Timer(MAX_DURATION + 10, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield AttackProcess(process)
        finally:
            watchdog.cancel()
            process.kill()


class _Attacks:
    """All attacks of this process, on the same address."""

    def __init__(self, address: tuple[str, int], attacks: list[Attack]) -> None:
        self._address = address
        self._attacks = attacks
        self._starting = sum(attack.count for attack in attacks)
        self._started = asyncio.Event()
        self.reports = [Report() for _ in attacks]

    async def run(self) -> None:
        clients = [
            asyncio.create_task(self._attack(attack, report))
            for attack, report in zip(self._attacks, self.reports, strict=True)
            for _ in range(attack.count)
        ]
        await self._started.wait()
        print("started", flush=True)
        stopped = asyncio.create_task(_wait_for_stop())
        ended = asyncio.create_task(asyncio.wait(clients))
        await asyncio.wait(
            (stopped, ended), timeout=MAX_DURATION, return_when=asyncio.FIRST_COMPLETED
        )
        for task in (stopped, ended, *clients):
            task.cancel()
        await asyncio.wait(clients)

    async def _attack(self, attack: Attack, report: Report) -> None:
        loop = asyncio.get_running_loop()
        first = True
        while first or attack.reconnect:
            started, outcome = loop.time(), STILL_OPEN
            try:
                outcome = await self._connection(attack, report, first=first)
            except OSError:
                outcome = "reset"
            finally:
                report.outcomes.append((outcome, loop.time() - started))
            first = False

    async def _connection(self, attack: Attack, report: Report, *, first: bool) -> str:
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.settimeout(0)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_SIZE)
            if attack.read_rate:  # The kernel must not read ahead of the client.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            # Closing resets the connection. Otherwise the server would need seconds for the
            # megabytes that a flood leaves in the kernel's buffers.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(connection, self._address)
            await loop.sock_sendall(connection, attack.prefix.encode("latin-1"))
            if first:
                self._starting -= 1
                if not self._starting:
                    self._started.set()
            if attack.flood:
                return await _flood(connection, attack, report)
            if attack.read_rate:
                return await _read_slowly(connection, attack, report)
            if not attack.payload:
                return await _idle(connection)
            return await _trickle(connection, attack, report)


async def _wait_for_stop() -> None:
    """Wait until the parent process closes its end of the pipe to standard input."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        os.read(sys.stdin.fileno(), 1)
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=read, daemon=True).start()
    await closed.wait()


async def _idle(connection: socket.socket) -> str:
    """Read nothing. Only check whether the connection is still open."""
    while not peer_has_closed(connection):  # noqa: ASYNC110 - there is no event for it without reading
        await asyncio.sleep(0.1)
    return "reset"


async def _trickle(connection: socket.socket, attack: Attack, report: Report) -> str:
    loop = asyncio.get_running_loop()
    response = asyncio.ensure_future(loop.sock_recv(connection, 4096))
    payload = attack.payload.encode()
    wait = random.uniform(0, attack.interval)  # Otherwise all clients would send at once.
    try:
        while not (await asyncio.wait((response,), timeout=wait))[0]:
            await loop.sock_sendall(connection, payload)
            report.sent += 1
            wait = attack.interval
        return (await response)[9:12].decode() or "closed"
    finally:
        response.cancel()


async def _read_slowly(connection: socket.socket, attack: Attack, report: Report) -> str:
    loop = asyncio.get_running_loop()
    size = int(attack.read_rate * attack.interval)
    await asyncio.sleep(random.uniform(0, attack.interval))  # Otherwise all would read at once.
    while data := await loop.sock_recv(connection, size):
        report.sent += len(data)
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200 "):
            return data[9:12].decode()
        await asyncio.sleep(attack.interval * len(data) / size)
    return "closed"


async def _flood(connection: socket.socket, attack: Attack, report: Report) -> str:
    loop = asyncio.get_running_loop()

    async def read_responses() -> str:
        while await loop.sock_recv(connection, 65_536):
            pass
        return "closed"

    responses = asyncio.create_task(read_responses())
    prefix = attack.prefix.encode("latin-1")
    try:
        while not responses.done():
            await loop.sock_sendall(connection, prefix)
            report.sent += len(prefix)
        return responses.result()
    finally:
        responses.cancel()


def main(url: str, specification: str) -> None:
    address = urlsplit(url)
    attacks: list[dict[str, Any]] = json.loads(specification)
    running = _Attacks(("127.0.0.1", address.port or 80), [Attack(**attack) for attack in attacks])
    uvloop.run(running.run())
    print(json.dumps([asdict(report) for report in running.reports]))


if __name__ == "__main__":
    main(*sys.argv[1:])
