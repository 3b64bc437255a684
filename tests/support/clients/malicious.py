"""Clients that mean harm, in a process of their own: they take no time from who measures it."""

import asyncio
import json
import os
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

from tests.support.clients.sockets import hung_up

LIFE = 400.0
"""Seconds after which attackers end by themselves."""

HANGING = "held"
"""The end of a connection that had none when the attack was stopped."""


@dataclass(frozen=True)
class Attack:
    """So many clients that send a beginning, and then a byte every so many seconds.

    With no byte they neither send nor read. `again`: who is thrown out comes back at once.
    `flood`: they send the beginning again and again without a pause, and read every answer.
    """

    count: int
    beginning: str
    byte: str = "x"
    every: float = 0.5
    again: bool = True
    flood: bool = False


@dataclass
class Report:
    """How an attack's connections ended, by status or "reset", and after how many seconds."""

    ends: list[tuple[str, float]] = field(default_factory=list)
    sent: int = 0

    def __str__(self) -> str:
        times = [seconds for end, seconds in self.ends if end != HANGING]
        spread = f" after {min(times):.1f} to {max(times):.1f} s" if times else ""
        return f"{dict(self.counts)}{spread}, {self.sent} bytes dripped"

    @property
    def counts(self) -> Counter[str]:
        return Counter(end for end, _ in self.ends)


class Attackers:
    """The process, seen from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self, *, within: float = 0) -> list[Report]:
        """End the attack, or let it end by itself `within` some seconds; what came of each."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(within)
        output, _ = self._process.communicate(timeout=20)
        return [Report(**report) for report in json.loads(output)]


@contextmanager
def attacking(url: str, *attacks: Attack) -> Iterator[Attackers]:
    """Once all of them have begun, until the block ends."""
    specification = json.dumps([asdict(attack) for attack in attacks])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.clients.malicious", url, specification],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        watchdog = threading.Timer(LIFE + 10, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield Attackers(process)
        finally:
            watchdog.cancel()
            process.kill()


class _Campaign:
    """All attacks of this process, on one address."""

    def __init__(self, address: tuple[str, int], attacks: list[Attack]) -> None:
        self._address = address
        self._attacks = attacks
        self._missing = sum(attack.count for attack in attacks)
        self._begun = asyncio.Event()
        self.reports = [Report() for _ in attacks]

    async def run(self) -> None:
        clients = [
            asyncio.create_task(self._attack(attack, report))
            for attack, report in zip(self._attacks, self.reports, strict=True)
            for _ in range(attack.count)
        ]
        await self._begun.wait()
        print("begun", flush=True)
        stopped = asyncio.create_task(_stopped())
        ended = asyncio.create_task(asyncio.wait(clients))
        await asyncio.wait((stopped, ended), timeout=LIFE, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopped, ended, *clients):
            task.cancel()
        await asyncio.wait(clients)

    async def _attack(self, attack: Attack, report: Report) -> None:
        loop = asyncio.get_running_loop()
        first = True
        while first or attack.again:
            began, end = loop.time(), HANGING
            try:
                end = await self._connection(attack, report, first=first)
            except OSError:
                end = "reset"
            finally:
                report.ends.append((end, loop.time() - began))
            first = False

    async def _connection(self, attack: Attack, report: Report, *, first: bool) -> str:
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.settimeout(0)
            # It ends with a reset: the server would take seconds for the megabytes that a flood
            # leaves in the kernel's buffers.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(connection, self._address)
            await loop.sock_sendall(connection, attack.beginning.encode("latin-1"))
            if first:
                self._missing -= 1
                if not self._missing:
                    self._begun.set()
            if attack.flood:
                return await _flood(connection, attack, report)
            if not attack.byte:
                return await _sleep(connection)
            return await _drip(connection, attack, report)


async def _stopped() -> None:
    """Return when whoever started this process has no more to say to it."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        os.read(sys.stdin.fileno(), 1)
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=read, daemon=True).start()
    await closed.wait()


async def _sleep(connection: socket.socket) -> str:
    """Read nothing; only look whether the connection is there still."""
    while not hung_up(connection):  # noqa: ASYNC110 - only reading would be told
        await asyncio.sleep(0.1)
    return "reset"


async def _drip(connection: socket.socket, attack: Attack, report: Report) -> str:
    loop = asyncio.get_running_loop()
    answer = asyncio.ensure_future(loop.sock_recv(connection, 4096))
    try:
        while not (await asyncio.wait((answer,), timeout=attack.every))[0]:
            await loop.sock_sendall(connection, attack.byte.encode())
            report.sent += 1
        return (await answer)[9:12].decode() or "closed"
    finally:
        answer.cancel()


async def _flood(connection: socket.socket, attack: Attack, report: Report) -> str:
    loop = asyncio.get_running_loop()

    async def read_answers() -> str:
        while await loop.sock_recv(connection, 65_536):
            pass
        return "closed"

    answers = asyncio.create_task(read_answers())
    beginning = attack.beginning.encode("latin-1")
    try:
        while not answers.done():
            await loop.sock_sendall(connection, beginning)
            report.sent += len(beginning)
        return answers.result()
    finally:
        answers.cancel()


def main(url: str, specification: str) -> None:
    address = urlsplit(url)
    attacks: list[dict[str, Any]] = json.loads(specification)
    campaign = _Campaign(
        ("127.0.0.1", address.port or 80), [Attack(**attack) for attack in attacks]
    )
    asyncio.run(campaign.run())
    print(json.dumps([asdict(report) for report in campaign.reports]))


if __name__ == "__main__":
    main(*sys.argv[1:])
