"""The examples as people run them: as processes, with keys exported, on a terminal, with Ctrl-C."""

import ast
import hashlib
import hmac
import io
import json
import os
import pty
import queue
import random
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pyAesCrypt
import pytest

from tests.conftest import Serve, Service

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
HISTORY = EXAMPLES / "test_bundle.jsonl"
UPLOAD, FETCH, CURL = "upload-bundle.py", "fetch-bundle.py", "curl.sh"
MIB = 1 << 20

KEYS: Mapping[str, str | bytes] = {"SIGNING_KEY": "a signing key", "AES_KEY": "an AES key"}
ODD_KEYS: Mapping[str, str | bytes] = {  # longer than a SHA-256 block, which HMAC hashes first
    "SIGNING_KEY": b"\t schl\xc3\xbcssel \xff 6\\\t" + "🔑".encode() * 20 + b" \t",
    "AES_KEY": " " + "ключ 🔐" * 170 + "   ",
}
TICKET = {"BUNDLE_ID": str(uuid4()), "HMAC_VALUE": "ab" * 32}


# --- processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One run of a script; a variable that is None is not set, `before` is done by `fork` only."""

    script: str
    arguments: tuple[str | Path, ...] = ()
    url: str = "http://localhost:1"
    variables: Mapping[str, str | bytes | None] = field(default_factory=dict)
    interpreter: tuple[str | Path, ...] = ()
    before: str = ""

    @property
    def command(self) -> list[str]:
        usual = ("bash",) if self.script == CURL else (sys.executable,)
        words = (*(self.interpreter or usual), EXAMPLES / self.script, *self.arguments)
        return [str(word) for word in words]


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Desk:
    """A working directory and a TMPDIR of one's own, in which a file left behind is seen."""

    path: Path

    @cached_property
    def cwd(self) -> Path:
        return self._folder("cwd")

    @cached_property
    def tmp(self) -> Path:
        return self._folder("tmp")

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def environment(self, call: Call) -> dict[str, str]:
        variables: dict[str, str | bytes | None] = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TMPDIR": str(self.tmp),
            "HISTORY_URL": call.url,
            "RES_OPTIONS": "timeout:1 attempts:1",  # an unknown name is known to be so soon
            **KEYS,
            **call.variables,
        }
        return {name: os.fsdecode(value) for name, value in variables.items() if value is not None}

    def start(self, call: Call, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            call.command,
            cwd=self.cwd,
            env=self.environment(call),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )

    def run(self, call: Call) -> Result:
        return finish(self.start(call))

    def run_on_terminal(self, call: Call) -> Result:
        """With a terminal for stderr."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        process = self.start(call, stderr=theirs)
        os.close(theirs)
        shown = bytearray()
        with suppress(OSError):  # Linux's way to say that the other end is closed
            while read := os.read(ours, 65_536):
                shown += read
        os.close(ours)
        result = finish(process)
        return Result(result.status, result.out, shown.decode())

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.path)): path.read_bytes() if path.is_file() else b""
            for path in (*self.cwd.rglob("*"), *self.tmp.rglob("*"))
        }


def finish(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out.decode(), (err or b"").decode())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


def signing_key(keys: Mapping[str, str | bytes]) -> bytes:
    """The key that HTTP carries, without the white space around it."""
    return os.fsencode(keys["SIGNING_KEY"]).strip(b" \t")


def sign(bundle: bytes, keys: Mapping[str, str | bytes] = KEYS) -> str:
    return hmac.new(signing_key(keys), bundle, hashlib.sha256).hexdigest()


def encrypt(plain: bytes, keys: Mapping[str, str | bytes] = KEYS) -> bytes:
    bundle = io.BytesIO()
    pyAesCrypt.encryptStream(io.BytesIO(plain), bundle, keys["AES_KEY"])
    return bundle.getvalue()


def decrypt(bundle: bytes, keys: Mapping[str, str | bytes] = KEYS) -> bytes:
    plain = io.BytesIO()
    # A buffer that holds all of the bundle, for the sake of what fetch-bundle.py says of 6.1.1.
    pyAesCrypt.decryptStream(io.BytesIO(bundle), plain, keys["AES_KEY"], 16 * len(bundle))
    return plain.getvalue()


def deposit(url: str, bundle: bytes) -> dict[str, str]:
    """Upload by other means than the examples'; the variables with which to fetch it."""
    answer = httpx.post(f"{url}/upload", content=bundle, headers={"X-HMAC": sign(bundle)})
    assert answer.status_code == 200
    return {"BUNDLE_ID": answer.text, "HMAC_VALUE": sign(bundle)}


def ticket(uploaded: Result) -> dict[str, str]:
    """What the last line of upload-bundle.py exports."""
    found = re.search(r"^BUNDLE_ID=(\S{36}) HMAC_VALUE=([0-9a-f]{64}) ", uploaded.out, re.MULTILINE)
    assert found, uploaded
    return {"BUNDLE_ID": found[1], "HMAC_VALUE": found[2]}


# --- round trips ---------------------------------------------------------------------------------


def test_the_default_file(desk: Desk, service: Service) -> None:
    uploaded = desk.run(Call(UPLOAD, url=service.url))
    assert (uploaded.status, uploaded.err) == (0, "")
    bundle_id = ticket(uploaded)["BUNDLE_ID"]
    assert str(UUID(bundle_id)) == bundle_id

    line = uploaded.out.splitlines()[-1]
    pasted = desk.run(Call(FETCH, url=service.url, interpreter=("bash", "-c", line)))
    assert (pasted.status, pasted.err) == (0, "")
    assert desk.files() == {f"cwd/messages_bundle_{bundle_id}": HISTORY.read_bytes()}
    assert (desk.cwd / f"messages_bundle_{bundle_id}").stat().st_mode & 0o777 == 0o600


def test_other_files_and_odd_keys(desk: Desk, service: Service) -> None:
    plain = random.Random(1).randbytes(MIB - 1)  # such a size is padded wrongly by pyAesCrypt 6.1.1
    source = desk.path / "a history.bin"
    target = desk.cwd / "a target"
    target.write_bytes(b"old, and longer than nothing")
    source.write_bytes(plain)
    url = f"{service.url}/"  # a slash at the end is fine

    uploaded = desk.run(Call(UPLOAD, (source,), url, ODD_KEYS))
    assert (uploaded.status, uploaded.err) == (0, "")
    proof = ticket(uploaded)
    stored = httpx.get(
        f"{service.url}/files/{proof['BUNDLE_ID']}",
        headers={b"X-HMAC": proof["HMAC_VALUE"].encode(), b"X-SIGNING-KEY": signing_key(ODD_KEYS)},
    )
    assert stored.status_code == 200
    assert sign(stored.content, ODD_KEYS) == proof["HMAC_VALUE"]
    assert decrypt(stored.content, ODD_KEYS) == plain

    spelling = {"BUNDLE_ID": proof["BUNDLE_ID"].upper(), "HMAC_VALUE": proof["HMAC_VALUE"].upper()}
    fetched = desk.run(Call(FETCH, (target,), url, {**ODD_KEYS, **spelling}))
    assert (fetched.status, fetched.err) == (0, "")
    assert desk.files() == {"cwd/a target": plain}


@pytest.mark.parametrize("keys", [KEYS, ODD_KEYS], ids=["plain", "odd"])
def test_curl(desk: Desk, service: Service, keys: Mapping[str, str | bytes]) -> None:
    """Also: no program that the script starts is told a key in its arguments."""
    seen = desk.path / "seen"
    programs = desk.path / "bin"
    programs.mkdir(parents=True)
    for name in ("cat", "cmp", "curl", "cut", "head", "mktemp", "od", "openssl", "sed", "tr"):
        program = programs / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> "{seen}"\nexec {shutil.which(name)} "$@"\n'
        )
        program.chmod(0o755)
    source = desk.path / "- a history.bin"
    source.write_bytes(random.Random(2).randbytes(2 * MIB + 1))
    arguments = (source,) if keys is ODD_KEYS else ()

    variables = {**keys, "PATH": f"{programs}:{os.environ['PATH']}"}
    result = desk.run(Call(CURL, arguments, f"{service.url}/", variables))
    assert (result.status, result.err) == (0, "")
    assert desk.files() == {}

    bundle_id, bundle_hmac = (line.split()[-1] for line in result.out.splitlines()[:2])
    stored = httpx.get(
        f"{service.url}/files/{bundle_id}",
        headers={b"X-HMAC": bundle_hmac.encode(), b"X-SIGNING-KEY": signing_key(keys)},
    )
    assert stored.status_code == 200
    assert stored.content.startswith(b"Salted__")
    told = seen.read_bytes()
    assert b"\ncurl " in told
    assert b"\nopenssl " in told
    for key in keys.values():
        assert os.fsencode(key).strip() not in told


def test_progress_is_for_terminals(desk: Desk, service: Service) -> None:
    """All other tests see that there is none without."""
    uploaded = desk.run_on_terminal(Call(UPLOAD, url=service.url))
    assert "encrypt: 100%" in uploaded.err
    assert "upload: 100%" in uploaded.err
    fetched = desk.run_on_terminal(Call(FETCH, url=service.url, variables=ticket(uploaded)))
    assert "fetch: 100%" in fetched.err
    assert "decrypt: 100%" in fetched.err
    assert "100.0%" in desk.run_on_terminal(Call(CURL, url=service.url)).err


MEASURE = """\
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def test_memory_is_bounded(desk: Desk, service: Service) -> None:
    source = desk.path / "history"
    piece = random.Random(3).randbytes(MIB)
    desk.path.mkdir(parents=True)
    with source.open("wb") as file:
        file.writelines(piece for _ in range(32))

    def peak(script: str, *arguments: str | Path, **variables: str) -> tuple[int, Result]:
        # A process counts the memory of its parent, up to exec; hence a small one in between.
        runner = "bash" if script == CURL else sys.executable
        interpreter = (sys.executable, "-c", MEASURE, runner)
        result = desk.run(Call(script, arguments, service.url, variables, interpreter))
        assert (result.status, result.err) == (0, "")
        return int(result.out.splitlines()[-1]) * MAXRSS_UNIT, result

    with ThreadPoolExecutor() as pool:
        curls = pool.submit(peak, CURL, source)
        upload, uploaded = peak(UPLOAD, source)
        fetch, _ = peak(FETCH, "out", **ticket(uploaded))
        curl, _ = curls.result()
    print(f"peak: upload {upload / MIB:.0f}, fetch {fetch / MIB:.0f}, curl {curl / MIB:.0f} MiB")
    assert desk.files()["cwd/out"] == piece * 32
    assert max(upload, fetch) < 80 * MIB  # Python and httpx alone are 40
    assert curl < 40 * MIB


# --- failures ------------------------------------------------------------------------------------


def answer(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def problem(status: str, detail: str) -> bytes:
    body = json.dumps({"code": "a_code", "detail": detail}).encode()
    return answer(status, body, "Content-Type: application/problem+json")


REAL_ID = str(uuid4()).encode()
PLAYS = {
    "400": problem("400 Bad Request", "Send a header."),
    "422": problem("422 Unprocessable Content", "Send it again."),
    "503": problem("503 Service Unavailable", 'Try "later".'),
    "redirect": answer("307 Temporary Redirect", b"", "Location: /html/"),
    "html": answer("502 Bad Gateway", b"<html>\x1b[31m</html>", "Content-Type: text/html"),
    "deep": answer("400 Bad Request", b"[" * 60_000),
    "escape": problem("400 Bad Request", "\x1b]0;owned\x07\u202e\ud800red\nblue"),
    "no-id": answer("200 OK", b"\x1b[31mWelcome to the hotel's network"),
    "hangs-up": b"",
    "noise": b"SSH-2.0-OpenSSH_9.2\r\n",
    "tampered": answer("200 OK", b"not what was signed"),
    "truncated": answer("200 OK", b"AES", length=1000),
    "truncated-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nAES\r\n",
    "silent": b"",
    "stalls": answer("200 OK", b"AES", length=1000),
    "endless": b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
}


class Player(socketserver.StreamRequestHandler):
    """Plays what its first path segment asks for; an upload by curl.sh's later acts succeeds."""

    server: "Stub"

    def handle(self) -> None:
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        method, path, _ = head.split(b" ", 2)
        play = path.split(b"/")[1].decode()
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if b"100-continue" in head:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.rfile.read(int(length[1]) if length else 0)
        self.server.heads.put(head)
        script = PLAYS[play]
        if method == b"POST" and play in ("tampered", "truncated", "stalls"):
            script = answer("200 OK", REAL_ID)
        with suppress(OSError):  # the client may go when it has heard enough
            self.wfile.write(script)
            while play == "endless":
                self.wfile.write(bytes(65_536))
            if play in ("silent", "stalls"):
                self.rfile.read(1)


class Stub(socketserver.ThreadingTCPServer):
    """A server that does what no real one does, or should."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Player)
        self.heads: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def url(self, play: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{play}"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> Iterator[str]:
    """Bound, so that nobody else gets it, but not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


Cases = dict[str, tuple[Call, str]]
"""By name: a call that fails, and what its one sentence matches."""


FORK = """\
import gc, io, json, os, runpy, sys
import httpx, pyAesCrypt, tqdm

httpx.Client().close()  # these two import more, once for all
pyAesCrypt.encryptStream(io.BytesIO(), io.BytesIO(), "")
gc.freeze()  # or each child would look at all of it once more, and so copy it
names = {}
for name, order in json.load(sys.stdin).items():
    if child := os.fork():
        names[child] = name
        continue
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number in (1, 2):
        os.dup2(os.open(order["outputs"][number - 1], os.O_WRONLY | os.O_CREAT), number)
    exec(order["before"])
    sys.argv = order["argv"]
    if "upload" in sys.argv[0]:  # to stretch the key takes a while, and here proves nothing
        pyAesCrypt.crypto.stretch = lambda key, iv: bytes(32)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()
status = {names[child]: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in names}
json.dump(status, sys.stdout)
"""


def fork(calls: Mapping[str, tuple[Desk, Call]]) -> dict[str, Result]:
    """Run Python scripts as processes that share one start, which takes ten times their work."""
    outputs = {
        name: [desk.path / "stdout", desk.path / "stderr"] for name, (desk, _) in calls.items()
    }
    orders = {
        name: {
            "cwd": str(desk.cwd),
            "environment": desk.environment(call),
            "outputs": [str(path) for path in outputs[name]],
            "before": call.before,
            "argv": call.command[1:],
        }
        for name, (desk, call) in calls.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        input=json.dumps(orders),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    return {
        name: Result(status, *(path.read_text() for path in outputs[name]))
        for name, status in json.loads(done.stdout).items()
    }


def wrong_results(path: Path, cases: Cases) -> dict[str, Result]:
    """Run all cases; those that fail in a wrong way."""
    calls = {name: (Desk(path / name), call) for name, (call, _) in cases.items()}
    for desk, _ in calls.values():
        (desk.cwd / "out").write_bytes(b"precious")
    forked = {
        name: (desk, call)
        for name, (desk, call) in calls.items()
        if call.script != CURL and not call.interpreter
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        others = {
            name: pool.submit(desk.run, call)
            for name, (desk, call) in calls.items()
            if name not in forked
        }
        results = fork(forked) if forked else {}
        results |= {name: other.result() for name, other in others.items()}

    def is_right(name: str) -> bool:
        (desk, call), sentence, result = calls[name], cases[name][1], results[name]
        program = call.script.removesuffix(".py")
        return (
            result.status == 1
            and re.fullmatch(rf"{program}: .+[.?)]\n", result.err) is not None
            and result.err.isascii()
            and re.search(sentence, result.err) is not None
            and re.search("signing key|AES key|Traceback", result.err) is None
            and (call.script == CURL or not result.out)
            and desk.files() == {"cwd/out": b"precious"}
        )

    return {name: results[name] for name in cases if not is_right(name)}


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
IMPATIENT = """\
real = httpx.Timeout
httpx.Timeout = lambda seconds, connect: real(seconds / 200, connect=connect)
"""


def impatient_path(folder: Path) -> str:
    """A PATH on which curl waits one second where it is told to wait for sixty."""
    folder.mkdir()
    curl = folder / "curl"
    curl.write_text(f'#!/bin/sh\nexec {shutil.which("curl")} "$@" --max-time 1\n')
    curl.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_python_scripts_fail_alike() -> None:
    """What both share is the same letter by letter, so it is enough that one of them shows it."""
    upload, fetch = (
        {
            part.name: ast.unparse(part)
            for part in ast.parse((EXAMPLES / script).read_text()).body
            if isinstance(part, ast.FunctionDef | ast.ClassDef)
        }
        for script in (UPLOAD, FETCH)
    )
    shared = (upload.keys() & fetch.keys()) - {"main"}
    assert shared == {"Failure", "read_keys", "connect", "refusal"}
    assert {name: upload[name] for name in shared} == {name: fetch[name] for name in shared}


def test_upload_failures(tmp_path: Path, serve: Serve, stub: Stub, closed_port: str) -> None:
    small = serve(max_bundle_size="1MiB").url
    large, empty = tmp_path / "large", tmp_path / "no bytes"
    large.write_bytes(bytes(8 * MIB))
    empty.touch()
    cases: Cases = {
        "no keys": (
            Call(UPLOAD, variables={"SIGNING_KEY": None, "AES_KEY": " "}),
            "Export a value for SIGNING_KEY, AES_KEY first",
        ),
        "newline": (Call(UPLOAD, variables={"SIGNING_KEY": "a\nb"}), "SIGNING_KEY has a control"),
        "not utf-8": (Call(UPLOAD, variables={"AES_KEY": b"\xff"}), "AES_KEY is not UTF-8"),
        "long": (Call(UPLOAD, variables={"AES_KEY": "ü" * 1025}), "1024 characters"),
        "no libraries": (
            Call(UPLOAD, interpreter=(sys.executable, "-S")),
            "No module named 'httpx': run `python3 -m pip install",
        ),
        "missing": (Call(UPLOAD, ("nothing.jsonl",)), r"nothing\.jsonl: No such file.*: check"),
        "folder": (Call(UPLOAD, (tmp_path,)), "Is a directory: check"),
        "empty": (Call(UPLOAD, (empty,)), "is empty: name"),
        "full disk": (
            Call(UPLOAD, (large,), before=FULL_DISK),
            r"temporary file \(see TMPDIR\): File too large: check",
        ),
        "down": (Call(UPLOAD, url=closed_port), "Cannot reach .* refused"),
        "unknown host": (Call(UPLOAD, url="http://history.invalid"), "Cannot reach http://history"),
        "no url": (Call(UPLOAD, url="localhost:5558"), r"HISTORY_URL \(localhost:5558\)"),
        "no port": (Call(UPLOAD, url=f"http://localhost:{1 << 64}"), "Cannot reach .*HISTORY_URL"),
        "no proxy": (
            Call(UPLOAD, variables={"ALL_PROXY": "gopher://x"}),
            "proxy variable: .*gopher",
        ),
        "too large": (Call(UPLOAD, (large,), small), r"over the server's limit: .*413: .*\."),
        "silent": (
            Call(UPLOAD, url=stub.url("silent"), before=IMPATIENT),
            "silent for a minute: try again",
        ),
        "endless": (Call(UPLOAD, url=stub.url("endless")), "server failed: .*500: Internal"),
        "redirect": (Call(UPLOAD, url=stub.url("redirect")), "not follow redirects: .*307: /html/"),
        "400": (Call(UPLOAD, url=stub.url("400")), r"refused .*HISTORY_URL .*400: Send a header\."),
        "422": (Call(UPLOAD, url=stub.url("422")), r"damaged .*again .*422: Send it again\."),
        "503": (Call(UPLOAD, url=stub.url("503")), r"in a minute .*503: Try \"later\"\."),
        "html": (Call(UPLOAD, url=stub.url("html")), "later .*502: Bad Gateway"),
        "deep": (Call(UPLOAD, url=stub.url("deep")), "400: Bad Request"),
        "escape": (Call(UPLOAD, url=stub.url("escape")), r"400: \]0;ownedredblue\)"),
        "no id": (Call(UPLOAD, url=stub.url("no-id")), "without a bundle's id: check"),
        "hangs up": (Call(UPLOAD, url=stub.url("hangs-up")), "broke: try again"),
        "noise": (Call(UPLOAD, url=stub.url("noise")), "broke: try again"),
    }
    assert wrong_results(tmp_path, cases) == {}


def test_fetch_failures(tmp_path: Path, serve: Serve, stub: Stub) -> None:
    now = [time.time()]
    url = serve(clock=lambda: now[0]).url
    expired = deposit(url, b"soon gone")
    now[0] += 8 * 86_400
    bundle = encrypt(b"hello" * 100_000)
    known = deposit(url, bundle)
    header = bundle[: bundle.index(bytes(128)) + 130 + 16 + 48 + 32]

    def fetch(
        url: str, variables: Mapping[str, str | bytes | None], *, out: str = "out", before: str = ""
    ) -> Call:
        return Call(FETCH, (out,), url, variables, before=before)

    cases: Cases = {
        "nothing": (
            Call(FETCH, variables=dict.fromkeys(KEYS)),
            "Export a value for BUNDLE_ID, HMAC_VALUE, SIGNING_KEY, AES_KEY first",
        ),
        "no id": (fetch(url, {**known, "BUNDLE_ID": "../etc"}), "BUNDLE_ID is not a UUID: copy"),
        "no hmac": (fetch(url, {**known, "HMAC_VALUE": "é" * 64}), "HMAC_VALUE is not 64 hex"),
        "no folder": (fetch(url, known, out="no/folder/out"), "no/folder/out.*No such.*: check"),
        "folder": (fetch(url, known, out="."), "is not a file: name another"),
        "full disk": (fetch(url, known, before=FULL_DISK), "File too large: check"),
        "wrong key": (fetch(url, {**known, "SIGNING_KEY": "x"}), r"check SIGNING_KEY .*401: .*\."),
        "wrong hmac": (fetch(url, {**known, "HMAC_VALUE": "ab" * 32}), r"HMAC_VALUE .*401: .*\."),
        "unknown": (fetch(url, TICKET), r"check BUNDLE_ID, .*404: .*\."),
        "expired": (fetch(url, expired), r"unknown or expired: .*404: .*\."),
        "wrong AES key": (fetch(url, {**known, "AES_KEY": "x"}), "check AES_KEY .Wrong password"),
        "not AES": (fetch(url, deposit(url, b"a b c")), "check AES_KEY .*not an AES Crypt"),
        "AES's head": (fetch(url, deposit(url, header + b"cut")), "check AES_KEY .index"),
        "tampered": (fetch(stub.url("tampered"), TICKET), "do not match HMAC_VALUE: download"),
        "truncated": (fetch(stub.url("truncated"), TICKET), "broke: try again"),
        "chunks": (fetch(stub.url("truncated-chunks"), TICKET), "broke: try again"),
        "stalls": (
            fetch(stub.url("stalls"), TICKET, before=IMPATIENT),
            "silent for a minute: try again",
        ),
        "redirect": (fetch(stub.url("redirect"), TICKET), "not follow redirects: .*307: /html/"),
        "400": (fetch(stub.url("400"), TICKET), r"refused .*HISTORY_URL .*400: Send a header\."),
        "503": (fetch(stub.url("503"), TICKET), r"in a minute .*503: Try \"later\"\."),
    }
    assert wrong_results(tmp_path, cases) == {}


def test_curl_failures(tmp_path: Path, serve: Serve, stub: Stub, closed_port: str) -> None:
    small = serve(max_bundle_size="1MiB").url
    large, empty = tmp_path / "large", tmp_path / "no bytes"
    large.write_bytes(bytes(8 * MIB))
    empty.touch()
    impatient = {"PATH": impatient_path(tmp_path / "impatient")}
    toolless = {"PATH": str(tmp_path / "impatient")}
    cases: Cases = {
        "no keys": (
            Call(CURL, variables={"SIGNING_KEY": None, "AES_KEY": " \t"}),
            "Export a value for SIGNING_KEY, AES_KEY first",
        ),
        "newline": (Call(CURL, variables={"SIGNING_KEY": "a\nb"}), "SIGNING_KEY has a control"),
        "no tools": (
            Call(CURL, (large,), variables=toolless, interpreter=(str(shutil.which("bash")),)),
            "openssl is not installed",
        ),
        "missing": (Call(CURL, ("nothing.jsonl",)), r"nothing\.jsonl: check"),
        "folder": (Call(CURL, (tmp_path,)), ": check the file's"),
        "empty": (Call(CURL, (empty,)), "is empty: name"),
        "no TMPDIR": (
            Call(CURL, variables={"TMPDIR": "/nowhere"}),
            "Cannot write to /nowhere: set",
        ),
        "down": (Call(CURL, url=closed_port), "Cannot reach"),
        "unknown host": (Call(CURL, url="http://history.invalid"), "Cannot reach http://history"),
        "no url": (Call(CURL, url="file:///etc"), "not an http:// or https:// address: correct"),
        "too large": (Call(CURL, (large,), small), r"over the server's limit: .*413: .*\."),
        "silent": (Call(CURL, url=stub.url("silent"), variables=impatient), "silent .*: try again"),
        "stalls": (Call(CURL, url=stub.url("stalls"), variables=impatient), "silent .*: try again"),
        "redirect": (Call(CURL, url=stub.url("redirect")), "not follow redirects: .*HTTP 307"),
        "400": (Call(CURL, url=stub.url("400")), r"refused.*HISTORY_URL .*400: Send a header\."),
        "422": (Call(CURL, url=stub.url("422")), r"damaged .*again .*422: Send it again\."),
        "503": (Call(CURL, url=stub.url("503")), r"in a minute .*503: Try \"later\"\."),
        "html": (Call(CURL, url=stub.url("html")), r"later \(HTTP 502\)"),
        "escape": (Call(CURL, url=stub.url("escape")), r"400: u001b\]0;owned"),
        "no id": (Call(CURL, url=stub.url("no-id")), "without a bundle's id: check"),
        "hangs up": (Call(CURL, url=stub.url("hangs-up")), "broke: try again"),
        "tampered": (Call(CURL, url=stub.url("tampered")), "not match the HMAC of the upload: try"),
        "truncated": (Call(CURL, url=stub.url("truncated")), "broke: try again"),
    }
    assert wrong_results(tmp_path, cases) == {}


def test_a_key_meets_no_redirect(desk: Desk, stub: Stub) -> None:
    (desk.cwd / ".curlrc").write_text("location\n")
    variables = {**TICKET, "HOME": str(desk.cwd), "SIGNING_KEY": "only here"}
    assert desk.run(Call(FETCH, url=stub.url("redirect"), variables=variables)).status == 1
    assert b"only here" in stub.heads.get(timeout=5)
    assert desk.run(Call(CURL, url=stub.url("redirect"), variables=variables)).status == 1
    assert stub.heads.get(timeout=5).startswith(b"POST")
    assert stub.heads.empty()


def test_ctrl_c(tmp_path: Path, stub: Stub) -> None:
    """Nothing is left behind, and nothing but the status tells of it."""
    interrupts = [
        (UPLOAD, "silent", signal.SIGINT, 130),
        (FETCH, "stalls", signal.SIGINT, 130),
        (FETCH, "stalls", signal.SIGTERM, 143),
        (CURL, "silent", signal.SIGINT, 130),
    ]
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # even where it was ignored
    try:
        running = []
        for number, (script, play, *_) in enumerate(interrupts):
            desk = Desk(tmp_path / str(number))
            running.append((desk, desk.start(Call(script, url=stub.url(play), variables=TICKET))))
    finally:
        signal.signal(signal.SIGINT, usual)
    for _ in interrupts:
        stub.heads.get(timeout=20)
    for (script, _, number, status), (desk, process) in zip(interrupts, running, strict=True):
        assert bool(desk.files()) == (script != UPLOAD)  # its file never had a name
        os.killpg(process.pid, number)
        assert finish(process) == Result(status, "", "")
        assert desk.files() == {}


# --- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [UPLOAD, FETCH, CURL])
def test_help_and_usage(desk: Desk, script: str) -> None:
    told = desk.run(Call(script, ("--help",), variables=dict.fromkeys(KEYS)))
    assert (told.status, told.err) == (0, "")
    for name in ("usage: ", "SIGNING_KEY", "AES_KEY", "HISTORY_URL", "http://localhost:5558"):
        assert name in told.out
    misused = desk.run(Call(script, ("one", "two")))
    assert misused.status == 2
    assert misused.err.startswith("usage: ")


def test_the_made_up_messages() -> None:
    messages = [json.loads(line) for line in HISTORY.read_text().splitlines()]
    assert 250 <= len(messages) <= 350
    hex_digits = {"id": 64, "group_id": 32, "sender_installation_id": 64}
    for message in messages:
        for name, digits in hex_digits.items():
            assert re.fullmatch(f"[0-9a-f]{{{digits}}}", message[name])
        assert re.fullmatch("0x[0-9a-f]{40}", message["sender_account_address"])
        assert bytes.fromhex(message["decrypted_message_bytes"]).decode().isprintable()
        assert message["kind"] in (1, 2)
        assert message["delivery_status"] == 1
    times = [message["sent_at_ns"] for message in messages]
    assert times == sorted(set(times))
    assert len({message["id"] for message in messages}) == len(messages)
    assert len({message["group_id"] for message in messages}) == 2
