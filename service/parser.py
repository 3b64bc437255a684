"""h11's parser of requests, with limits on what one request and one turn may cost."""

import h11
from h11._readers import ContentLengthReader
from h11._receivebuffer import ReceiveBuffer

from service.problems import STATUS

TURN = 100
"""Chunks of a body that are taken in before others have their turn: each takes 13 µs."""

MAX_HEAD = 16 * 1024
"""Bytes of a request's head, and of a chunked body's trailers."""

MAX_LINES = 100
"""Header lines of a request, and lines of trailers.

A line costs 150 bytes of memory and 2 µs beside its own bytes: 32 KB of `a:` lines took 1.4 MiB for
as long as their request was open.
"""

TAKING = {h11.CLIENT: h11.SEND_BODY, h11.SERVER: h11.SEND_RESPONSE}
"""The states of a connection while a body is taken in and is not answered yet."""


class RequestParser(h11.Connection):
    """h11's parser, which refuses large heads, and returns nothing more when a turn is over."""

    refusal = "malformed_request"
    """The code of the error, after `next_event` has raised one."""

    _left = TURN

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._receive_buffer = _LimitedBuffer()

    def begin_turn(self) -> None:
        self._left = TURN

    @property
    def turn_over(self) -> bool:
        return not self._left

    def passes(self, size: int) -> bool:
        """Whether so many bytes are all of a body that goes on after them; if so, they are passed.

        They need no parser then, which copies them four times: a sixth of the CPU of an upload.
        """
        reader = self._reader
        if (
            type(reader) is not ContentLengthReader
            or self.states != TAKING
            or size >= reader._remaining  # noqa: SLF001
            or self.trailing_data[0]
        ):
            return False
        reader._remaining -= size  # noqa: SLF001
        return True

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.turn_over:
            return h11.NEED_DATA
        idle = self.their_state is h11.IDLE
        try:
            event = super().next_event()
        except _HeadTooLarge as error:
            self.refusal = error.code
            raise
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == STATUS["headers_too_large"]:
                # What has arrived is too long already, and its end is not there.
                one_line = idle and b"\n" not in self.trailing_data[0]
                self.refusal = "uri_too_long" if one_line else "headers_too_large"
            raise
        self._left -= isinstance(event, h11.Data)
        return event


class _HeadTooLarge(h11.RemoteProtocolError):
    """A complete head or a set of trailers is over a limit; `code` is that of the problem."""

    def __init__(self, code: str) -> None:
        super().__init__(code, error_status_hint=STATUS[code])
        self.code = code


class _LimitedBuffer(ReceiveBuffer):
    """h11's buffer, which refuses too large a head before h11 takes its lines apart.

    h11 limits a head that is not complete, but neither a complete one nor the number of lines.
    Trailers are read in the same way, from reads of up to 256 KiB.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        before = len(self)
        lines = super().maybe_extract_lines()
        if lines and (before - len(self) > MAX_HEAD or len(lines) > MAX_LINES + 1):
            long = len(lines[0]) > MAX_HEAD
            raise _HeadTooLarge("uri_too_long" if long else "headers_too_large")
        return lines
