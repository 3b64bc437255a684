"""A desk at which somebody runs the examples, and what comes of it."""

import hashlib
import hmac
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import httpx
import pyAesCrypt

from tests.support.repository import ROOT

EXAMPLES = ROOT / "examples"
HISTORY = EXAMPLES / "test_bundle.jsonl"
UPLOAD, FETCH, CURL = "upload-bundle.py", "fetch-bundle.py", "curl.sh"

KEYS: Mapping[str, str | bytes] = {"SIGNING_KEY": "a signing key", "AES_KEY": "an AES key"}
ODD_KEYS: Mapping[str, str | bytes] = {  # longer than a SHA-256 block, which HMAC hashes first
    "SIGNING_KEY": b"\t schl\xc3\xbcssel \xff 6\\\t" + "🔑".encode() * 20 + b" \t",
    "AES_KEY": " " + "ключ 🔐" * 170 + "   ",
}
TICKET = {"BUNDLE_ID": str(uuid4()), "HMAC_VALUE": "ab" * 32}


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


def answer(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def problem(status: str, detail: str) -> bytes:
    body = json.dumps({"code": "a_code", "detail": detail}).encode()
    return answer(status, body, "Content-Type: application/problem+json")
