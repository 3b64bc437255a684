"""h11's request parser, with limits on the size of a head and on the work done at a time.

Each `connection` has one.
"""

import h11
from h11._readers import ContentLengthReader
from h11._receivebuffer import ReceiveBuffer

from service.http.problems import STATUS

MAX_CHUNKS_PER_TURN = 100
"""Chunks of a body that are parsed before other connections get a turn: each takes 13 µs."""

MAX_HEAD_SIZE = 16 * 1024
"""Bytes of a request's head, and of the trailers of a chunked body."""

MAX_HEAD_LINES = 100
"""Header lines of a request, and lines of trailers.

Each line costs 150 bytes of memory and 2 µs in addition to its own bytes: a head of 32 KB made of
`a:` lines would take 1.4 MiB for as long as its request is open.
"""

SMALL_READ = 16 * 1024
"""Bytes that are read at once, unless they belong to the body that the application waits for."""

CHUNKED_READ = 64 * 1024
"""Bytes of a chunked body that are read at once. They can hold 15,000 trailers, 50 ms of work."""

RECEIVING_BODY = {h11.CLIENT: h11.SEND_BODY, h11.SERVER: h11.SEND_RESPONSE}
"""The states of a connection while a body arrives and the response has not started."""


class RequestParser(h11.Connection):
    """h11's parser. It rejects large heads, and returns no more events after the end of a turn."""

    error_code = "malformed_request"
    """The code of the problem after `next_event` has raised an error."""

    _chunks_left = MAX_CHUNKS_PER_TURN

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_SIZE)
        self._receive_buffer = _LimitedBuffer()

    def begin_turn(self) -> None:
        self._chunks_left = MAX_CHUNKS_PER_TURN

    @property
    def turn_over(self) -> bool:
        return not self._chunks_left

    def read_size(self, chunk_size: int) -> int:
        """Return how many bytes to read at once, at most `chunk_size` of a body.

        Reads end where a body of known length ends: requests that are sent ahead have no window.
        """
        if self.states != RECEIVING_BODY:
            return SMALL_READ
        if type(self._reader) is ContentLengthReader:
            return min(chunk_size, self._reader._remaining) or SMALL_READ  # noqa: SLF001
        return min(chunk_size, CHUNKED_READ)

    def skip_body(self, size: int) -> bool:
        """Account for `size` bytes of a body without parsing them; return whether that is possible.

        It is possible in a body of known length. h11 would copy the bytes four times, which takes a
        sixth of the CPU time of an upload. It still has to say that the body has ended.
        """
        reader = self._reader
        if (
            type(reader) is not ContentLengthReader
            or self.states != RECEIVING_BODY
            or size > reader._remaining  # noqa: SLF001
            or self.trailing_data[0]
        ):
            return False
        reader._remaining -= size  # noqa: SLF001
        return True

    @property
    def body_has_ended(self) -> bool:
        """Whether all bytes of a body of known length have arrived."""
        return type(self._reader) is ContentLengthReader and not self._reader._remaining  # noqa: SLF001

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.turn_over:
            return h11.NEED_DATA
        idle = self.their_state is h11.IDLE
        try:
            event = super().next_event()
        except _HeadTooLarge as error:
            self.error_code = error.code
            raise
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == STATUS["headers_too_large"]:
                # The head is incomplete, and already too long.
                only_target = idle and b"\n" not in self.trailing_data[0]
                self.error_code = "uri_too_long" if only_target else "headers_too_large"
            raise
        self._chunks_left -= isinstance(event, h11.Data)
        return event


class _HeadTooLarge(h11.RemoteProtocolError):
    """A complete head or set of trailers is over a limit; `code` is the code of the problem."""

    def __init__(self, code: str) -> None:
        super().__init__(code, error_status_hint=STATUS[code])
        self.code = code


class _LimitedBuffer(ReceiveBuffer):
    """h11's buffer, which rejects a head that is too large before h11 parses its lines.

    h11 limits the size of an incomplete head only, and not the number of lines. It reads trailers
    in the same way, from reads of up to `CHUNKED_READ` bytes.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        before = len(self)
        lines = super().maybe_extract_lines()
        if lines and (before - len(self) > MAX_HEAD_SIZE or len(lines) > MAX_HEAD_LINES + 1):
            long_target = len(lines[0]) > MAX_HEAD_SIZE
            raise _HeadTooLarge("uri_too_long" if long_target else "headers_too_large")
        return lines
