"""Failures of the examples: what they say, their exit code, and what they leave."""

import ast
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.docs.examples.desk import (
    CURL,
    EXAMPLES,
    FETCH,
    KEYS,
    TICKET,
    UPLOAD,
    Call,
    deposit,
    encrypt,
)
from tests.docs.examples.parallel_runs import Cases, wrong_results
from tests.docs.examples.stub import Stub
from tests.support.services.thread import Serve

MIB = 1 << 20


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
