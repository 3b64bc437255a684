"""The body of a PutObject that is sent while it arrives: in order, complete, and not too early."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st

from service.bundles.memory import Memory
from service.bundles.stream import MIN_HELD_BACK, PIECES, SILENCE, StreamBroken, UploadStream
from tests.bundles.simulated_loop import let_tasks_run, simulate
from tests.support.fuzz import fuzz

CHUNK = 20_000
A, B, C, D = (letter * CHUNK for letter in (b"A", b"B", b"C", b"D"))


@dataclass
class Request:
    """A request to S3 that has ended after `limit` bytes, but goes on reading.

    It pauses for `pause` seconds after each chunk.
    """

    stream: UploadStream
    limit: float = float("inf")
    pause: float = 0
    received: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for chunk in self.stream:
                self.received += chunk
                self.sizes.append(len(chunk))
                if len(self.received) >= self.limit:
                    self.ended.set()
                await asyncio.sleep(self.pause)
        finally:
            self.ended.set()


def new_stream() -> tuple[UploadStream, Memory]:
    memory = Memory(16 * CHUNK, part_size=4 * CHUNK, timeout=1)
    return UploadStream(3 * CHUNK, memory.replay()), memory


async def send(stream: UploadStream, *chunks: bytes) -> None:
    for chunk in chunks:
        await stream.send(chunk)


def test_newest_chunk_is_held_back_and_the_last_one_is_sent_after_finish() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        request = Request(stream)
        task = request.start()
        await send(stream, A)
        await let_tasks_run()
        assert request.received == b""
        await send(stream, B)
        await let_tasks_run()
        assert request.received == A
        await send(stream, C)
        await let_tasks_run()
        assert request.received == A + B
        stream.finish()
        await task
        assert request.received == A + B + C

    simulate(test())


def test_sender_waits_until_s3_takes_its_chunk() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        sending = asyncio.create_task(send(stream, A, B, C))
        await let_tasks_run()
        assert not sending.done()
        request = Request(stream, pause=1)
        request.start()
        await sending
        assert request.received == A

    simulate(test())


def test_silence_sends_small_pieces_but_never_the_last_byte() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        request = Request(stream)
        task = request.start()
        await send(stream, A)
        await asyncio.sleep(SILENCE - 0.1)
        assert request.sizes == []
        await asyncio.sleep(0.2)
        assert request.sizes == [CHUNK // PIECES]
        await asyncio.sleep(SILENCE)
        assert request.sizes[1:] == [(CHUNK - request.sizes[0]) // PIECES]
        await asyncio.sleep(1000 * SILENCE)
        assert request.received == A[:-1]
        await send(stream, B)
        await asyncio.sleep(1000 * SILENCE)
        assert request.received == A + B[:-1]
        stream.finish()
        await task
        assert request.received == A + B

    simulate(test())


def test_pauses_of_a_client_of_30_seconds_leave_something_to_send_every_5_seconds() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        (request := Request(stream)).start()
        for pieces in range(6, 30, 6):
            await send(stream, bytes(MIN_HELD_BACK))
            await asyncio.sleep(6 * SILENCE + 0.1)
            assert len(request.sizes) >= pieces

    simulate(test())


@pytest.mark.parametrize("sender_first", [True, False])
def test_chunk_that_arrives_when_the_silence_ends_keeps_its_place(*, sender_first: bool) -> None:
    async def send_later(stream: UploadStream) -> None:
        await asyncio.sleep(SILENCE)
        await send(stream, B, C)
        stream.finish()

    async def test() -> None:
        stream, _ = new_stream()
        request = Request(stream)
        await send(stream, A)
        sending = asyncio.create_task(send_later(stream))
        if sender_first:
            await let_tasks_run(1)
        await asyncio.gather(request.start(), sending)
        assert request.received == A + B + C

    simulate(test())


def test_tiny_chunks_are_joined() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        request = Request(stream)
        task = request.start()
        await send(stream, *[b"1"] * 1000)
        stream.finish()
        await task
        assert request.received == b"1" * 1000
        assert all(size >= MIN_HELD_BACK for size in request.sizes[:-1])

    simulate(test())


def test_rewound_stream_is_sent_from_its_start() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        first = Request(stream)
        stream.rewind()  # botocore does this before the first attempt too.
        old = first.start()
        await send(stream, A, B)
        await let_tasks_run()
        stream.rewind()
        second = Request(stream)
        task = second.start()
        await let_tasks_run()
        assert second.received == A
        with pytest.raises(StreamBroken):
            await old
        stream.finish()
        await task
        assert second.received == A + B

    simulate(test())


def test_old_iterator_takes_nothing_even_after_silence() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        old, new = aiter(stream), aiter(stream)
        await send(stream, A)
        waiting = asyncio.ensure_future(anext(old))
        await let_tasks_run()
        stream.rewind()
        piece = await anext(new)
        with pytest.raises(StreamBroken):
            await waiting
        assert piece == A[: CHUNK // PIECES]

    simulate(test())


def drop_replay_buffers(memory: Memory) -> None:
    assert memory.reserve(memory.buffers.total - memory.part_size)


def test_stream_whose_replay_buffer_was_dropped_cannot_be_rewound() -> None:
    async def test() -> None:
        stream, memory = new_stream()
        request = Request(stream)
        task = request.start()
        await send(stream, A, B)
        await let_tasks_run()
        drop_replay_buffers(memory)
        with pytest.raises(StreamBroken):
            stream.rewind()
        await send(stream, C)
        stream.finish()
        await task
        assert request.received == A + B + C, "the current request does not need the buffer"

    simulate(test())


def test_replay_buffer_that_is_dropped_while_it_is_sent_stops_the_iteration() -> None:
    """Its memory is free at once, except for the chunk in hand."""

    async def test() -> None:
        stream, memory = new_stream()
        chunks = [bytes([number]) * CHUNK for number in range(4)]
        references = [sys.getrefcount(chunks[1])]
        old = Request(stream).start()
        await send(stream, *chunks)
        await let_tasks_run()
        stream.rewind()
        iterator = aiter(stream)
        assert await anext(iterator) == chunks[0]
        drop_replay_buffers(memory)
        references.append(sys.getrefcount(chunks[1]))
        assert references[0] == references[1]
        for iteration in (old, anext(iterator)):
            with pytest.raises(StreamBroken):
                await iteration

    simulate(test())


def test_failed_request_wakes_the_sender_and_stops_iterators() -> None:
    async def test() -> None:
        stream, _ = new_stream()
        reading = Request(stream, pause=9).start()
        sending = asyncio.create_task(send(stream, A, B, C, D))
        await let_tasks_run(20)
        assert not sending.done()
        stream.fail()
        for waiting in (sending, reading, send(stream, C), anext(aiter(stream))):
            with pytest.raises(StreamBroken):
                await waiting

    simulate(test())


PAUSES = st.sampled_from([0, 0, 0, 1, SILENCE, 12])
SENT = st.lists(
    st.tuples(PAUSES, st.sampled_from([1, MIN_HELD_BACK, 1000, CHUNK])), min_size=1, max_size=8
)
"""The chunks of a client: the pause before each, and its size."""

ATTEMPTS = st.lists(st.tuples(st.integers(1, 8 * CHUNK) | st.integers(1, 100), PAUSES), max_size=4)
"""The requests to S3 that fail: after how many bytes, and their pauses."""


async def upload(
    stream: UploadStream, bundle: bytes, sent: Sequence[tuple[float, int]], finished: asyncio.Event
) -> None:
    """Send a bundle as a client does, in chunks of these sizes with these pauses."""
    start = 0
    for pause, size in sent:
        await asyncio.sleep(pause)
        await stream.send(bundle[start : start + size])
        start += size
    finished.set()
    stream.finish()


@fuzz(SENT, ATTEMPTS, st.none() | st.integers(0, 100), examples=150)
def test_retried_request_sends_the_same_bytes(
    sent: list[tuple[float, int]], attempts: list[tuple[int, float]], dropped_at: float | None
) -> None:
    """A retry fails only if the replay buffer was dropped. No request gets the last byte early."""
    bundle = b"".join(bytes([65 + number]) * size for number, (_, size) in enumerate(sent))

    async def test() -> None:
        memory = Memory(1 << 30, part_size=1 << 28, timeout=1)
        replay = memory.replay()
        stream, finished = UploadStream(len(bundle), replay), asyncio.Event()
        if dropped_at is not None:
            asyncio.get_running_loop().call_later(dropped_at, replay.release)
        sending = asyncio.create_task(upload(stream, bundle, sent, finished))
        tasks: list[asyncio.Task[None]] = []
        with suppress(StreamBroken):
            for limit, pause in [*attempts, (len(bundle) + 1, 1)]:
                stream.rewind()
                request = Request(stream, limit, pause)
                tasks.append(request.start())
                while not request.ended.is_set():
                    assert finished.is_set() or len(request.received) < len(bundle)
                    await asyncio.sleep(0.25)
                assert request.received == bundle[: len(request.received)]
            await tasks[-1]
            assert request.received == bundle
        stream.fail()
        results = await asyncio.gather(sending, *tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, StreamBroken) for result in results)
        if results[-1] is not None:
            assert not replay.complete
        replay.release()
        assert memory.buffers.in_use == 0

    simulate(test())
