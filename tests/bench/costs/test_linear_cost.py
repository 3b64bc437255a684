"""The cost of parsing client input is linear in its size. The tests count steps, not time."""

import ast
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundles import proof, ranges
from service.errors import HistoryError
from service.http import about, access_log, forms, middleware
from service.http.auth import token_path
from service.telemetry import tracing
from tests.bench.costs.step_counter import Program, TooManySteps, count_lines
from tests.support.repository import ROOT, module_name

METHODS = {"fullmatch", "match", "search", "findall", "sub"}


OPERATOR_INPUT = {"service.settings"}
"""Modules whose patterns match only what the operator configures, and nothing from a client."""


@dataclass(frozen=True)
class PatternUse:
    """A regular expression in the service, and the method of `re` that is called with it."""

    module: str
    pattern: str | bytes
    flags: int
    method: str

    def __str__(self) -> str:
        return f"{self.module}:{self.pattern!r}.{self.method}"

    def count_steps(self, text: str, *, limit: int) -> int:
        program = compile_pattern(self.pattern, self.flags)
        program.steps = 0
        subject = text.encode("latin-1") if isinstance(self.pattern, bytes) else text
        method = {"findall": "count", "sub": "count"}.get(self.method, self.method)
        getattr(program, method)(subject, limit)
        return program.steps


@cache
def compile_pattern(pattern: str | bytes, flags: int) -> Program:
    return Program(pattern, flags)


def find_pattern_uses() -> Iterator[PatternUse]:
    """Find every use of `re` in the service: with a named pattern, or with one in the call."""
    for path in sorted((ROOT / "service").glob("**/*.py")):
        if module_name(path) in OPERATOR_INPUT:
            continue
        tree = ast.parse(path.read_text())
        named_patterns = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and _called_method(node.value) == ("re", "compile")
        }
        for node in ast.walk(tree):
            owner, method = _called_method(node) or ("", "")
            if method not in METHODS or not isinstance(node, ast.Call):
                continue
            if owner == "re":
                yield _pattern_use(path, node, method)
            elif owner in named_patterns:
                yield _pattern_use(path, named_patterns[owner], method)


def _called_method(node: ast.AST) -> tuple[str, str] | None:
    """Return ("re", "compile") for a call of re.compile."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)):
            return owner, method
    return None


def _pattern_use(path: Path, call: ast.expr, method: str) -> PatternUse:
    assert isinstance(call, ast.Call)
    flags = [argument for argument in call.args[1:] if ast.unparse(argument).startswith("re.")]
    flag = getattr(re, ast.unparse(flags[0]).removeprefix("re.")) if flags else 0
    return PatternUse(module_name(path), ast.literal_eval(call.args[0]), int(flag), method)


PATTERN_USES = list(find_pattern_uses())

PIECES = [
    "".join(letters)
    for length in (1, 2)
    for letters in itertools.product('a0/;:="-., W[', repeat=length)
]
"""Pieces that are repeated to make a long text: one character of each kind, and pairs of them."""

BEGINNINGS = ("bytes=", "sha-256=:", ";q=", "http://", '"', "[", "a=::")


TEXTS = [("", piece) for piece in PIECES]
TEXTS += itertools.product(BEGINNINGS, [piece for piece in PIECES if len(piece) == 1])

LIMIT = 20_000
"""Steps for 512 characters. The most expensive pattern needs a fifth of this."""


def worst_growth(use: PatternUse) -> float:
    """Return by which factor the steps grow at most when a text becomes twice as long."""
    worst = 0.0
    for beginning, piece in TEXTS:
        short, long = (f"{beginning}{piece * (size // len(piece))}\x00" for size in (256, 512))
        steps = use.count_steps(short, limit=LIMIT)
        # With fewer steps, matching has ended before the repeated pieces.
        if steps > len(beginning) * 4 + 20:
            worst = max(worst, use.count_steps(long, limit=LIMIT) / steps)
    return worst


@pytest.mark.parametrize("use", PATTERN_USES, ids=str)
def test_pattern_takes_at_most_twice_the_steps_for_twice_the_text(use: PatternUse) -> None:
    """Allow a tenth more for steps that do not depend on the size. Quadratic cost would be 4."""
    assert worst_growth(use) <= 2.2


def test_pattern_uses_are_found_in_every_module_that_imports_re() -> None:
    modules = {use.module for use in PATTERN_USES}
    importing = {
        module_name(path)
        for path in (ROOT / "service").glob("**/*.py")
        if re.search("^import re$", path.read_text(), re.MULTILINE)
    }
    assert modules == importing - OPERATOR_INPUT


@pytest.mark.parametrize("pattern", ["/.*?[0-9a]{8}[0-9a-]{24,}", "-*-*-*;", "(?:a|a)*b", ";+x"])
def test_pattern_with_more_than_linear_cost_is_detected(pattern: str) -> None:
    with suppress(TooManySteps):
        assert worst_growth(PatternUse("none", pattern, 0, "search")) > 2.2


@given(data=st.data())
def test_step_counter_finds_the_same_matches_as_re(data: st.DataObject) -> None:
    use = data.draw(st.sampled_from(PATTERN_USES))
    source = use.pattern if isinstance(use.pattern, str) else use.pattern.decode()
    matching = st.from_regex(re.compile(source, use.flags), alphabet=st.characters(codec="ascii"))
    example = data.draw(matching | st.text('a0/;:="-., W[\n\xff', max_size=40))
    text = example if isinstance(use.pattern, str) else example.encode("latin-1")
    program = compile_pattern(use.pattern, use.flags)
    pattern = re.compile(use.pattern, use.flags)
    for method in ("fullmatch", "match", "search"):
        expected = getattr(pattern, method)(text)
        end = getattr(program, method)(text, 10**9)
        assert end == (expected.end() if expected else None)


def parse_disposition(value: str) -> None:
    """Parse a form with a part that has this Content-Disposition."""
    form = forms._Form(b"multipart/form-data; boundary=b")  # noqa: SLF001
    form.feed(b"--b\r\nContent-Disposition: form-data;%b\r\n\r\n" % value.encode())


TRACEPARENT = f"01-{'1' * 32}-{'1' * 16}-01"


PARSERS: dict[str, Callable[[str], object]] = {
    "digests": lambda value: proof.parse_digests("Repr-Digest", value.encode()),
    "If-Match": lambda value: ranges._matches(value, '"x"'),  # noqa: SLF001
    "Range": lambda value: ranges.RangeRequest(ranges=value).select(ranges.ObjectStat(9, '"x"', 0)),
    "Accept": about.prefers_html,
    "Content-Type": lambda value: forms._Form(b"multipart/form-data;" + value.encode()),  # noqa: SLF001
    "Content-Disposition": parse_disposition,
    "path": lambda value: middleware._normalize(f"http://x/{value}".encode(), ""),  # noqa: SLF001
    "decoded path": lambda value: middleware._normalize(b"/", f"/{value}"),  # noqa: SLF001
    "token in a path": lambda value: token_path.split_path(f"/t/{value}"),
    "traceparent": lambda value: tracing.parse_traceparent([f"{TRACEPARENT}-{value}"]),
    "path of the access log": lambda value: access_log._short_id(f"/files/{value}"),  # noqa: SLF001
    "shortened path": lambda value: access_log._shorten_path(f"/files/{value}"),  # noqa: SLF001
}


REPEATED = ["a", "a=b;", "a=::,", '"', 'W/"a",', "a;q=1,", "%41", "/", "a-", ";"]


@pytest.mark.parametrize("piece", REPEATED)
@pytest.mark.parametrize("name", PARSERS)
def test_parser_runs_at_most_twice_the_lines_for_twice_the_text(name: str, piece: str) -> None:
    def parse(text: str) -> None:
        with suppress(HistoryError):  # Then only the lines until the error are counted.
            PARSERS[name](text)

    parse(piece)  # Do everything that happens only once, such as imports, before counting.
    short = count_lines(lambda: parse(piece * (450 // len(piece))))
    long = count_lines(lambda: parse(piece * (900 // len(piece))))
    assert long <= 2 * short + 20
