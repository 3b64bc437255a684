"""Whatever clients send is read at a cost that is linear in its size, counted in steps."""

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
from tests.bench.costs.work_counter import Program, TooManySteps, lines
from tests.support.repository import ROOT, module_name

METHODS = {"fullmatch", "match", "search", "findall", "sub"}


CONFIGURED = {"service.settings"}
"""Modules whose patterns see what the operator configures, and nothing from a client."""


@dataclass(frozen=True)
class Use:
    """A regular expression of the service, and the method that it is used with."""

    place: str
    pattern: str | bytes
    flags: int
    method: str

    def __str__(self) -> str:
        return f"{self.place}:{self.pattern!r}.{self.method}"

    def steps(self, text: str, *, limit: int) -> int:
        program = compiled(self.pattern, self.flags)
        program.steps = 0
        given = text.encode("latin-1") if isinstance(self.pattern, bytes) else text
        method = {"findall": "all", "sub": "all"}.get(self.method, self.method)
        getattr(program, method)(given, limit)
        return program.steps


@cache
def compiled(pattern: str | bytes, flags: int) -> Program:
    return Program(pattern, flags)


def uses() -> Iterator[Use]:
    """Find every use of `re` in the source: of a named pattern, or of one in the call."""
    for path in sorted((ROOT / "service").glob("**/*.py")):
        if module_name(path) in CONFIGURED:
            continue
        tree = ast.parse(path.read_text())
        named = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and _calls(node.value) == ("re", "compile")
        }
        for node in ast.walk(tree):
            owner, method = _calls(node) or ("", "")
            if method not in METHODS or not isinstance(node, ast.Call):
                continue
            if owner == "re":
                yield _use(path, node, method)
            elif owner in named:
                yield _use(path, named[owner], method)


def _calls(node: ast.AST) -> tuple[str, str] | None:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)):
            return owner, method
    return None


def _use(path: Path, call: ast.expr, method: str) -> Use:
    assert isinstance(call, ast.Call)
    flags = [argument for argument in call.args[1:] if ast.unparse(argument).startswith("re.")]
    flag = getattr(re, ast.unparse(flags[0]).removeprefix("re.")) if flags else 0
    return Use(module_name(path), ast.literal_eval(call.args[0]), int(flag), method)


USES = list(uses())

PIECES = [
    "".join(letters)
    for length in (1, 2)
    for letters in itertools.product('a0/;:="-., W[', repeat=length)
]
"""What is repeated to make a long text: one character of each kind, and two by turns."""

BEGINNINGS = ("bytes=", "sha-256=:", ";q=", "http://", '"', "[", "a=::")


TEXTS = [("", piece) for piece in PIECES]
TEXTS += itertools.product(BEGINNINGS, [piece for piece in PIECES if len(piece) == 1])

LIMIT = 20_000
"""Steps for 512 characters: the dearest pattern takes a fifth of it."""


def hardest(use: Use) -> float:
    """Return how many times as many steps a text of twice the length takes, at worst."""
    worst = 0.0
    for beginning, piece in TEXTS:
        short, long = (f"{beginning}{piece * (size // len(piece))}\x00" for size in (256, 512))
        steps = use.steps(short, limit=LIMIT)
        if steps > len(beginning) * 4 + 20:  # Otherwise it ends where the long text begins.
            worst = max(worst, use.steps(long, limit=LIMIT) / steps)
    return worst


@pytest.mark.parametrize("use", USES, ids=str)
def test_a_pattern_costs_at_most_twice_as_much_for_twice_the_text(use: Use) -> None:
    """A tenth more is for what a pattern asks at least of a text: four times is quadratic."""
    assert hardest(use) <= 2.2


def test_every_use_of_a_pattern_is_found() -> None:
    """What the source compiles or calls on `re`, but for the modules named above."""
    found = {use.place for use in USES}
    importing = {
        module_name(path)
        for path in (ROOT / "service").glob("**/*.py")
        if re.search("^import re$", path.read_text(), re.MULTILINE)
    }
    assert found == importing - CONFIGURED


@pytest.mark.parametrize("pattern", ["/.*?[0-9a]{8}[0-9a-]{24,}", "-*-*-*;", "(?:a|a)*b", ";+x"])
def test_a_pattern_that_costs_more_is_noticed(pattern: str) -> None:
    with suppress(TooManySteps):
        assert hardest(Use("none", pattern, 0, "search")) > 2.2


@given(data=st.data())
def test_the_counter_matches_what_re_matches(data: st.DataObject) -> None:
    use = data.draw(st.sampled_from(USES))
    source = use.pattern if isinstance(use.pattern, str) else use.pattern.decode()
    like_it = st.from_regex(re.compile(source, use.flags), alphabet=st.characters(codec="ascii"))
    drawn = data.draw(like_it | st.text('a0/;:="-., W[\n\xff', max_size=40))
    text = drawn if isinstance(use.pattern, str) else drawn.encode("latin-1")
    program = compiled(use.pattern, use.flags)
    real = re.compile(use.pattern, use.flags)
    for method in ("fullmatch", "match", "search"):
        expected = getattr(real, method)(text)
        end = getattr(program, method)(text, 10**9)
        assert end == (expected.end() if expected else None)


def disposition(value: str) -> None:
    """Read a form whose part has this Content-Disposition."""
    form = forms._Form(b"multipart/form-data; boundary=b")  # noqa: SLF001
    form.feed(b"--b\r\nContent-Disposition: form-data;%b\r\n\r\n" % value.encode())


PARSERS: dict[str, Callable[[str], object]] = {
    "digests": lambda value: proof.parse_digests("Repr-Digest", value.encode()),
    "If-Match": lambda value: ranges._matches(value, '"x"'),  # noqa: SLF001
    "Range": lambda value: ranges.RangeRequest(ranges=value).select(ranges.ObjectStat(9, '"x"', 0)),
    "Accept": about.prefers_html,
    "Content-Type": lambda value: forms._Form(b"multipart/form-data;" + value.encode()),  # noqa: SLF001
    "Content-Disposition": disposition,
    "path": lambda value: middleware._normalize(f"http://x/{value}".encode(), ""),  # noqa: SLF001
    "decoded path": lambda value: middleware._normalize(b"/", f"/{value}"),  # noqa: SLF001
    "path of the access log": lambda value: access_log._short_id(f"/files/{value}"),  # noqa: SLF001
    "shortened path": lambda value: access_log._shorten_path(f"/files/{value}"),  # noqa: SLF001
}


REPEATED = ["a", "a=b;", "a=::,", '"', 'W/"a",', "a;q=1,", "%41", "/", "a-", ";"]


@pytest.mark.parametrize("piece", REPEATED)
@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_runs_at_most_twice_as_many_lines_for_twice_the_text(
    name: str, piece: str
) -> None:
    def read(text: str) -> None:
        with suppress(HistoryError):  # What is counted then is the cost until it is refused.
            PARSERS[name](text)

    read(piece)  # What is done only once, such as an import, is done here.
    short = lines(lambda: read(piece * (450 // len(piece))))
    long = lines(lambda: read(piece * (900 // len(piece))))
    assert long <= 2 * short + 20
