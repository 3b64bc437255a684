"""Counts the steps of a regular expression, and the lines of Python that a parser runs.

Unlike seconds, a count is the same on every machine, so tests can set a tight limit.
"""

import gc
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from re import _constants as op
from re import _parser as parser
from types import FrameType
from typing import Any


class TooManySteps(Exception):
    """A match needs more steps than its limit."""


class Program:
    """A pattern as a list of instructions, matched with backtracking as in Python's `re`.

    `re` itself does not report its steps. This class tries the same alternatives in the same order.
    It has none of the optimizations of `re`, such as searching for the fixed prefix of a pattern.
    """

    def __init__(self, pattern: str | bytes, flags: int = 0) -> None:
        self._flags = flags
        self._code: list[tuple[Any, ...]] = []
        self._compile(parser.parse(pattern, flags))
        self._code.append(("match",))
        self.steps = 0

    def fullmatch(self, text: str | bytes, limit: int) -> int | None:
        """Return the end of `text` if all of it matches. Raises `TooManySteps` above `limit`."""
        return self._run(_codes(text), 0, limit, whole=True)

    def match(self, text: str | bytes, limit: int) -> int | None:
        """Return the end of a match at the beginning of `text`."""
        return self._run(_codes(text), 0, limit)

    def search(self, text: str | bytes, limit: int) -> int | None:
        """Return the end of the first match in `text`."""
        codes = _codes(text)
        ends = (self._run(codes, start, limit) for start in range(len(codes) + 1))
        return next((end for end in ends if end is not None), None)

    def count(self, text: str | bytes, limit: int) -> int:
        """Return the number of matches, which it finds as `findall` and `sub` do."""
        codes, count, position = _codes(text), 0, 0
        while position <= len(codes):
            end = self._run(codes, position, limit)
            count += end is not None
            position = max(end or 0, position + 1)
        return count

    def _run(
        self, codes: Sequence[int], start: int, limit: int, *, whole: bool = False
    ) -> int | None:
        alternatives = [(0, start)]
        while alternatives:
            counter, position = alternatives.pop()
            while True:
                self.steps += 1
                if self.steps > limit:
                    raise TooManySteps
                name, *arguments = self._code[counter]
                if name == "match" and (position == len(codes) or not whole):
                    return position
                if name == "split":
                    alternatives.append((arguments[1], position))
                if name in {"split", "jump"}:
                    counter = arguments[0]
                elif name == "at" and _is_at(arguments[0], position, codes):
                    counter += 1
                elif name == "one" and position < len(codes) and arguments[0](codes[position]):
                    counter, position = counter + 1, position + 1
                else:
                    break
        return None

    def _compile(self, nodes: Any) -> None:
        for name, value in nodes:
            if name in {op.MAX_REPEAT, op.MIN_REPEAT}:
                self._repeat(*value, lazy=name is op.MIN_REPEAT)
            elif name is op.SUBPATTERN:
                self._compile(value[-1])
            elif name is op.BRANCH:
                self._branch(value[1])
            elif name is op.AT:
                self._code.append(("at", value))
            else:
                self._code.append(("one", self._character_test(name, value)))

    def _repeat(self, minimum: int, maximum: int, body: Any, *, lazy: bool) -> None:
        for _ in range(minimum):
            self._compile(body)
        if maximum is op.MAXREPEAT:
            start = self._reserve_split()
            self._compile(body)
            self._code.append(("jump", start))
            self._set_split(start, len(self._code), lazy=lazy)
            return
        splits = []
        for _ in range(maximum - minimum):
            splits.append(self._reserve_split())
            self._compile(body)
        for split in splits:
            self._set_split(split, len(self._code), lazy=lazy)

    def _reserve_split(self) -> int:
        """Reserve an instruction for `_set_split`, and return its index."""
        self._code.append(())
        return len(self._code) - 1

    def _set_split(self, split: int, end: int, *, lazy: bool) -> None:
        """Let a split choose between the next instruction and `end`. If lazy, try `end` first."""
        following = split + 1
        self._code[split] = ("split", end, following) if lazy else ("split", following, end)

    def _branch(self, alternatives: Any) -> None:
        jumps = []
        for alternative in alternatives[:-1]:
            split = self._reserve_split()
            self._compile(alternative)
            jumps.append(len(self._code))
            self._code.append(("jump",))
            self._set_split(split, len(self._code), lazy=False)
        self._compile(alternatives[-1])
        for jump in jumps:
            self._code[jump] = ("jump", len(self._code))

    def _character_test(self, name: Any, value: Any) -> Callable[[int], bool]:
        """Return a function that tells whether the character with a given code matches."""
        if name is op.ANY:
            return lambda code: self._flags & re.DOTALL != 0 or code != ord("\n")
        if name in {op.LITERAL, op.NOT_LITERAL}:
            literal = (op.LITERAL, value)
            value = [literal] if name is op.LITERAL else [(op.NEGATE, None), literal]
        else:
            assert name is op.IN, name
        negated = value[0][0] is op.NEGATE
        members = [self._member_test(*member) for member in value[negated:]]
        return cache(lambda code: any(member(code) for member in members) != negated)

    def _member_test(self, name: Any, value: Any) -> Callable[[int], bool]:
        if name is op.CATEGORY:
            assert value is op.CATEGORY_SPACE, value
            return lambda code: chr(code).isspace()
        low, high = (value, value) if name is op.LITERAL else value
        if not self._flags & re.IGNORECASE:
            return lambda code: low <= code <= high
        return lambda code: any(low <= ord(case) <= high for case in _equal_cases(chr(code)))


def _codes(text: str | bytes) -> Sequence[int]:
    return text if isinstance(text, bytes) else [ord(character) for character in text]


def _equal_cases(character: str) -> set[str]:
    """Return the characters that are equal with `re.IGNORECASE`, such as s and U+017F."""
    cases = {character, character.lower(), character.upper(), character.upper().lower()}
    return {case for case in cases if len(case) == 1}


def _is_at(anchor: Any, position: int, codes: Sequence[int]) -> bool:
    """Tell whether an anchor matches. The end of a text is also before a newline at its end."""
    if anchor is op.AT_BEGINNING:
        return position == 0
    assert anchor is op.AT_END, anchor
    return position == len(codes) or (position == len(codes) - 1 and codes[position] == ord("\n"))


def count_lines(call: Callable[[], object]) -> int:
    """Return how many lines of Python a call runs, including those in libraries.

    The garbage collector is off meanwhile. It would call finalizers of other tests' objects.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    previous_trace = sys.gettrace()
    gc.disable()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(previous_trace)
        gc.enable()
    return count
