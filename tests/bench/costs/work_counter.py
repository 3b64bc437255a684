"""Count the work of a regular expression or of a parser, in steps instead of seconds.

A count is the same on every machine, so a bound on it can be tight.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from re import _constants as op
from re import _parser as parser
from types import FrameType
from typing import Any


class TooManySteps(Exception):
    """A match needs more steps than it was given."""


class Program:
    """A pattern as a list of instructions, matched by backtracking as Python's `re` does it.

    `re` itself does not say how much it does. This tries the same alternatives in the same order;
    it leaves out what `re` does faster, such as a fixed prefix of the pattern that it searches for.
    """

    def __init__(self, pattern: str | bytes, flags: int = 0) -> None:
        self._flags = flags
        self._code: list[tuple[Any, ...]] = []
        self._compile(parser.parse(pattern, flags))
        self._code.append(("match",))
        self.steps = 0

    def fullmatch(self, text: str | bytes, limit: int) -> int | None:
        """Return the end of `text` if all of it matches. More than `limit` steps raise."""
        return self._run(_codes(text), 0, limit, whole=True)

    def match(self, text: str | bytes, limit: int) -> int | None:
        """Return where a match at the beginning of `text` ends."""
        return self._run(_codes(text), 0, limit)

    def search(self, text: str | bytes, limit: int) -> int | None:
        """Return where the first match in `text` ends."""
        codes = _codes(text)
        ends = (self._run(codes, start, limit) for start in range(len(codes) + 1))
        return next((end for end in ends if end is not None), None)

    def all(self, text: str | bytes, limit: int) -> int:
        """Find all matches, as `findall` and `sub` do, and return how many there are."""
        codes, count, position = _codes(text), 0, 0
        while position <= len(codes):
            end = self._run(codes, position, limit)
            count += end is not None
            position = max(end or 0, position + 1)
        return count

    def _run(self, codes: Sequence[int], at: int, limit: int, *, whole: bool = False) -> int | None:
        choices = [(0, at)]
        while choices:
            counter, at = choices.pop()
            while True:
                self.steps += 1
                if self.steps > limit:
                    raise TooManySteps
                name, *arguments = self._code[counter]
                if name == "match" and (at == len(codes) or not whole):
                    return at
                if name == "split":
                    choices.append((arguments[1], at))
                if name in {"split", "jump"}:
                    counter = arguments[0]
                elif name == "at" and _is_at(arguments[0], at, codes):
                    counter += 1
                elif name == "one" and at < len(codes) and arguments[0](codes[at]):
                    counter, at = counter + 1, at + 1
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
                self._code.append(("one", self._single(name, value)))

    def _repeat(self, least: int, most: int, body: Any, *, lazy: bool) -> None:
        for _ in range(least):
            self._compile(body)
        if most is op.MAXREPEAT:
            start = self._split()
            self._compile(body)
            self._code.append(("jump", start))
            self._leave_to(len(self._code), start, lazy=lazy)
            return
        splits = []
        for _ in range(most - least):
            splits.append(self._split())
            self._compile(body)
        for split in splits:
            self._leave_to(len(self._code), split, lazy=lazy)

    def _split(self) -> int:
        """Leave room for a choice; `_leave_to` says between what."""
        self._code.append(())
        return len(self._code) - 1

    def _leave_to(self, end: int, split: int, *, lazy: bool) -> None:
        again = split + 1
        self._code[split] = ("split", end, again) if lazy else ("split", again, end)

    def _branch(self, alternatives: Any) -> None:
        jumps = []
        for alternative in alternatives[:-1]:
            split = self._split()
            self._compile(alternative)
            jumps.append(len(self._code))
            self._code.append(("jump",))
            self._leave_to(len(self._code), split, lazy=False)
        self._compile(alternatives[-1])
        for jump in jumps:
            self._code[jump] = ("jump", len(self._code))

    def _single(self, name: Any, value: Any) -> Callable[[int], bool]:
        """Return a function that says whether one character, given as its code, matches."""
        if name is op.ANY:
            return lambda code: self._flags & re.DOTALL != 0 or code != ord("\n")
        if name in {op.LITERAL, op.NOT_LITERAL}:
            literal = (op.LITERAL, value)
            value = [literal] if name is op.LITERAL else [(op.NEGATE, None), literal]
        else:
            assert name is op.IN, name
        negated = value[0][0] is op.NEGATE
        members = [self._member(*member) for member in value[negated:]]
        return cache(lambda code: any(member(code) for member in members) != negated)

    def _member(self, name: Any, value: Any) -> Callable[[int], bool]:
        if name is op.CATEGORY:
            assert value is op.CATEGORY_SPACE, value
            return lambda code: chr(code).isspace()
        low, high = (value, value) if name is op.LITERAL else value
        if not self._flags & re.IGNORECASE:
            return lambda code: low <= code <= high
        return lambda code: any(low <= ord(case) <= high for case in _cases(chr(code)))


def _codes(text: str | bytes) -> Sequence[int]:
    return text if isinstance(text, bytes) else [ord(character) for character in text]


def _cases(character: str) -> set[str]:
    """Return the forms of a character that `re.IGNORECASE` treats as equal, as s and U+017F."""
    cases = {character, character.lower(), character.upper(), character.upper().lower()}
    return {case for case in cases if len(case) == 1}


def _is_at(where: Any, at: int, codes: Sequence[int]) -> bool:
    """Say whether this is the text's beginning, or its end, which is also before a last newline."""
    if where is op.AT_BEGINNING:
        return at == 0
    assert where is op.AT_END, where
    return at == len(codes) or (at == len(codes) - 1 and codes[at] == ord("\n"))


def lines(call: Callable[[], object]) -> int:
    """Return how many lines of Python are run by this call, in the libraries that it uses too."""
    count = 0

    def traced(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
