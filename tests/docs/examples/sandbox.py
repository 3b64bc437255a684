"""Runs the examples as processes, each with folders of its own, and returns their results."""

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
SAMPLE_HISTORY = EXAMPLES / "test_bundle.jsonl"
UPLOAD, FETCH, CURL = "upload-bundle.py", "fetch-bundle.py", "curl.sh"

KEYS: Mapping[str, str | bytes] = {"SIGNING_KEY": "a signing key", "AES_KEY": "an AES key"}
# HMAC hashes a key that is longer than a SHA-256 block, as this SIGNING_KEY is.
UNUSUAL_KEYS: Mapping[str, str | bytes] = {
    "SIGNING_KEY": b"\t schl\xc3\xbcssel \xff 6\\\t" + "🔑".encode() * 20 + b" \t",
    "AES_KEY": " " + "ключ 🔐" * 170 + "   ",
}
UNKNOWN_BUNDLE = {"BUNDLE_ID": str(uuid4()), "HMAC_VALUE": "ab" * 32}


@dataclass(frozen=True)
class Command:
    """A command that runs an example.

    A variable with the value None is not set. Only `run_forked` runs the Python code in `setup`.
    """

    script: str
    arguments: tuple[str | Path, ...] = ()
    url: str = "http://localhost:1"
    variables: Mapping[str, str | bytes | None] = field(default_factory=dict)
    interpreter: tuple[str | Path, ...] = ()
    setup: str = ""

    @property
    def argv(self) -> list[str]:
        default = ("bash",) if self.script == CURL else (sys.executable,)
        argv = (*(self.interpreter or default), EXAMPLES / self.script, *self.arguments)
        return [str(argument) for argument in argv]


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Sandbox:
    """A working directory and a TMPDIR for one test, which show what files a script leaves."""

    path: Path

    @cached_property
    def cwd(self) -> Path:
        return self._create_folder("cwd")

    @cached_property
    def tmp(self) -> Path:
        return self._create_folder("tmp")

    def _create_folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def environment(self, command: Command) -> dict[str, str]:
        variables: dict[str, str | bytes | None] = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TMPDIR": str(self.tmp),
            "HISTORY_URL": command.url,
            "RES_OPTIONS": "timeout:1 attempts:1",  # DNS lookups of unknown hosts fail quickly.
            **KEYS,
            **command.variables,
        }
        return {name: os.fsdecode(value) for name, value in variables.items() if value is not None}

    def start(self, command: Command, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command.argv,
            cwd=self.cwd,
            env=self.environment(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )

    def run(self, command: Command) -> Result:
        return wait(self.start(command))

    def run_on_terminal(self, command: Command) -> Result:
        """Run a command whose stderr is a terminal."""
        terminal, process_end = pty.openpty()
        termios.tcsetwinsize(process_end, (24, 80))
        process = self.start(command, stderr=process_end)
        os.close(process_end)
        output = bytearray()
        with suppress(OSError):  # On Linux, reading fails after the other end is closed.
            while chunk := os.read(terminal, 65_536):
                output += chunk
        os.close(terminal)
        result = wait(process)
        return Result(result.status, result.stdout, output.decode())

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.path)): path.read_bytes() if path.is_file() else b""
            for path in (*self.cwd.rglob("*"), *self.tmp.rglob("*"))
        }


def wait(process: subprocess.Popen[bytes]) -> Result:
    stdout, stderr = process.communicate(timeout=60)
    return Result(process.returncode, stdout.decode(), (stderr or b"").decode())


def signing_key(keys: Mapping[str, str | bytes]) -> bytes:
    """Return the signing key as HTTP transfers it: without the whitespace around it."""
    return os.fsencode(keys["SIGNING_KEY"]).strip(b" \t")


def sign(bundle: bytes, keys: Mapping[str, str | bytes] = KEYS) -> str:
    return hmac.new(signing_key(keys), bundle, hashlib.sha256).hexdigest()


def encrypt(plain: bytes, keys: Mapping[str, str | bytes] = KEYS) -> bytes:
    bundle = io.BytesIO()
    pyAesCrypt.encryptStream(io.BytesIO(plain), bundle, keys["AES_KEY"])
    return bundle.getvalue()


def decrypt(bundle: bytes, keys: Mapping[str, str | bytes] = KEYS) -> bytes:
    plain = io.BytesIO()
    # The buffer holds the whole bundle because of the bug in pyAesCrypt 6.1.1 that fetch-bundle.py
    # describes.
    pyAesCrypt.decryptStream(io.BytesIO(bundle), plain, keys["AES_KEY"], 16 * len(bundle))
    return plain.getvalue()


def upload_bundle(url: str, bundle: bytes) -> dict[str, str]:
    """Upload a bundle without an example, and return the variables that fetch-bundle.py needs."""
    response = httpx.post(f"{url}/upload", content=bundle, headers={"X-HMAC": sign(bundle)})
    assert response.status_code == 200
    return {"BUNDLE_ID": response.text, "HMAC_VALUE": sign(bundle)}


def printed_variables(upload: Result) -> dict[str, str]:
    """Return the variables in the last line of the output of upload-bundle.py."""
    match = re.search(
        r"^BUNDLE_ID=(\S{36}) HMAC_VALUE=([0-9a-f]{64}) ", upload.stdout, re.MULTILINE
    )
    assert match, upload
    return {"BUNDLE_ID": match[1], "HMAC_VALUE": match[2]}


def http_response(
    status: str, body: bytes = b"", *headers: str, length: int | None = None
) -> bytes:
    """Return the bytes of a response. Its Content-Length is `length`, even if that is wrong."""
    length = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def problem_response(status: str, detail: str) -> bytes:
    body = json.dumps({"code": "a_code", "detail": detail}).encode()
    return http_response(status, body, "Content-Type: application/problem+json")
