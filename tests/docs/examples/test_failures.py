"""Failures of the examples: their messages, their exit status, and the files they leave."""

import ast
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.docs.examples.parallel_runs import Cases, unexpected_results
from tests.docs.examples.sandbox import (
    CURL,
    EXAMPLES,
    FETCH,
    KEYS,
    UNKNOWN_BUNDLE,
    UPLOAD,
    Command,
    encrypt,
    upload_bundle,
)
from tests.docs.examples.stub_server import StubServer
from tests.support.services.thread import StartService

MIB = 1 << 20


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
SHORT_TIMEOUT = """\
Timeout = httpx.Timeout
httpx.Timeout = lambda seconds, connect: Timeout(seconds / 200, connect=connect)
"""


def path_with_short_timeout(folder: Path) -> str:
    """Return a PATH with a curl that waits for one second instead of sixty."""
    folder.mkdir()
    curl = folder / "curl"
    curl.write_text(f'#!/bin/sh\nexec {shutil.which("curl")} "$@" --max-time 1\n')
    curl.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_shared_functions_of_the_python_scripts_are_identical() -> None:
    """So it is enough to test the failures of these functions with one of the scripts."""
    upload, fetch = (
        {
            node.name: ast.unparse(node)
            for node in ast.parse((EXAMPLES / script).read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        for script in (UPLOAD, FETCH)
    )
    shared = (upload.keys() & fetch.keys()) - {"main"}
    assert shared == {"Failure", "read_keys", "connect", "refusal"}
    assert {name: upload[name] for name in shared} == {name: fetch[name] for name in shared}


def test_failed_upload_prints_what_to_do(
    tmp_path: Path, start_service: StartService, stub: StubServer, closed_port: str
) -> None:
    small = start_service(max_bundle_size="1MiB").url
    large, empty = tmp_path / "large", tmp_path / "no bytes"
    large.write_bytes(bytes(8 * MIB))
    empty.touch()
    cases: Cases = {
        "no keys": (
            Command(UPLOAD, variables={"SIGNING_KEY": None, "AES_KEY": " "}),
            "Export a value for SIGNING_KEY, AES_KEY first",
        ),
        "newline in key": (
            Command(UPLOAD, variables={"SIGNING_KEY": "a\nb"}),
            "SIGNING_KEY has a control",
        ),
        "key not UTF-8": (Command(UPLOAD, variables={"AES_KEY": b"\xff"}), "AES_KEY is not UTF-8"),
        "long key": (Command(UPLOAD, variables={"AES_KEY": "ü" * 1025}), "1024 characters"),
        "no libraries": (
            Command(UPLOAD, interpreter=(sys.executable, "-S")),
            "No module named 'httpx': run `python3 -m pip install",
        ),
        "missing file": (
            Command(UPLOAD, ("nothing.jsonl",)),
            r"nothing\.jsonl: No such file.*: check",
        ),
        "folder": (Command(UPLOAD, (tmp_path,)), "Is a directory: check"),
        "empty": (Command(UPLOAD, (empty,)), "is empty: name"),
        "full disk": (
            Command(UPLOAD, (large,), setup=FULL_DISK),
            r"temporary file \(see TMPDIR\): File too large: check",
        ),
        "closed port": (Command(UPLOAD, url=closed_port), "Cannot reach .* refused"),
        "unknown host": (
            Command(UPLOAD, url="http://history.invalid"),
            "Cannot reach http://history",
        ),
        "URL without scheme": (
            Command(UPLOAD, url="localhost:5558"),
            r"HISTORY_URL \(localhost:5558\)",
        ),
        "invalid port": (
            Command(UPLOAD, url=f"http://localhost:{1 << 64}"),
            "Cannot reach .*HISTORY_URL",
        ),
        "invalid proxy": (
            Command(UPLOAD, variables={"ALL_PROXY": "gopher://x"}),
            "proxy variable: .*gopher",
        ),
        "too large": (Command(UPLOAD, (large,), small), r"over the server's limit: .*413: .*\."),
        "silent": (
            Command(UPLOAD, url=stub.url("silent"), setup=SHORT_TIMEOUT),
            "silent for a minute: try again",
        ),
        "endless": (Command(UPLOAD, url=stub.url("endless")), "server failed: .*500: Internal"),
        "redirect": (
            Command(UPLOAD, url=stub.url("redirect")),
            "not follow redirects: .*307: /html/",
        ),
        "400": (
            Command(UPLOAD, url=stub.url("400")),
            r"refused .*HISTORY_URL .*400: Send a header\.",
        ),
        "422": (Command(UPLOAD, url=stub.url("422")), r"damaged .*again .*422: Send it again\."),
        "503": (Command(UPLOAD, url=stub.url("503")), r"in a minute .*503: Try \"later\"\."),
        "html": (Command(UPLOAD, url=stub.url("html")), "later .*502: Bad Gateway"),
        "deep": (Command(UPLOAD, url=stub.url("deep")), "400: Bad Request"),
        "escape": (Command(UPLOAD, url=stub.url("escape")), r"400: \]0;ownedredblue\)"),
        "response without id": (
            Command(UPLOAD, url=stub.url("no-id")),
            "without a bundle's id: check",
        ),
        "hangs up": (Command(UPLOAD, url=stub.url("hangs-up")), "broke: try again"),
        "noise": (Command(UPLOAD, url=stub.url("noise")), "broke: try again"),
    }
    assert unexpected_results(tmp_path, cases) == {}


def test_failed_fetch_prints_what_to_do(
    tmp_path: Path, start_service: StartService, stub: StubServer
) -> None:
    now = [time.time()]
    url = start_service(clock=lambda: now[0]).url
    expired = upload_bundle(url, b"an expired bundle")
    now[0] += 8 * 86_400
    bundle = encrypt(b"hello" * 100_000)
    stored = upload_bundle(url, bundle)
    header = bundle[: bundle.index(bytes(128)) + 130 + 16 + 48 + 32]

    def fetch(
        url: str,
        variables: Mapping[str, str | bytes | None],
        *,
        output: str = "out",
        setup: str = "",
    ) -> Command:
        return Command(FETCH, (output,), url, variables, setup=setup)

    cases: Cases = {
        "no variables": (
            Command(FETCH, variables=dict.fromkeys(KEYS)),
            "Export a value for BUNDLE_ID, HMAC_VALUE, SIGNING_KEY, AES_KEY first",
        ),
        "invalid id": (
            fetch(url, {**stored, "BUNDLE_ID": "../etc"}),
            "BUNDLE_ID is not a UUID: copy",
        ),
        "invalid HMAC": (
            fetch(url, {**stored, "HMAC_VALUE": "é" * 64}),
            "HMAC_VALUE is not 64 hex",
        ),
        "missing folder": (
            fetch(url, stored, output="no/folder/out"),
            "no/folder/out.*No such.*: check",
        ),
        "folder": (fetch(url, stored, output="."), "is not a file: name another"),
        "full disk": (fetch(url, stored, setup=FULL_DISK), "File too large: check"),
        "wrong key": (fetch(url, {**stored, "SIGNING_KEY": "x"}), r"check SIGNING_KEY .*401: .*\."),
        "wrong HMAC": (fetch(url, {**stored, "HMAC_VALUE": "ab" * 32}), r"HMAC_VALUE .*401: .*\."),
        "unknown": (fetch(url, UNKNOWN_BUNDLE), r"check BUNDLE_ID, .*404: .*\."),
        "expired": (fetch(url, expired), r"unknown or expired: .*404: .*\."),
        "wrong AES key": (fetch(url, {**stored, "AES_KEY": "x"}), "check AES_KEY .Wrong password"),
        "not AES": (fetch(url, upload_bundle(url, b"a b c")), "check AES_KEY .*not an AES Crypt"),
        "truncated AES": (fetch(url, upload_bundle(url, header + b"cut")), "check AES_KEY .index"),
        "tampered": (
            fetch(stub.url("tampered"), UNKNOWN_BUNDLE),
            "do not match HMAC_VALUE: download",
        ),
        "truncated": (fetch(stub.url("truncated"), UNKNOWN_BUNDLE), "broke: try again"),
        "truncated chunks": (
            fetch(stub.url("truncated-chunks"), UNKNOWN_BUNDLE),
            "broke: try again",
        ),
        "stalls": (
            fetch(stub.url("stalls"), UNKNOWN_BUNDLE, setup=SHORT_TIMEOUT),
            "silent for a minute: try again",
        ),
        "redirect": (
            fetch(stub.url("redirect"), UNKNOWN_BUNDLE),
            "not follow redirects: .*307: /html/",
        ),
        "400": (
            fetch(stub.url("400"), UNKNOWN_BUNDLE),
            r"refused .*HISTORY_URL .*400: Send a header\.",
        ),
        "503": (fetch(stub.url("503"), UNKNOWN_BUNDLE), r"in a minute .*503: Try \"later\"\."),
    }
    assert unexpected_results(tmp_path, cases) == {}


def test_failed_curl_script_prints_what_to_do(
    tmp_path: Path, start_service: StartService, stub: StubServer, closed_port: str
) -> None:
    small = start_service(max_bundle_size="1MiB").url
    large, empty = tmp_path / "large", tmp_path / "no bytes"
    large.write_bytes(bytes(8 * MIB))
    empty.touch()
    short_timeout = {"PATH": path_with_short_timeout(tmp_path / "curl")}
    only_curl = {"PATH": str(tmp_path / "curl")}
    cases: Cases = {
        "no keys": (
            Command(CURL, variables={"SIGNING_KEY": None, "AES_KEY": " \t"}),
            "Export a value for SIGNING_KEY, AES_KEY first",
        ),
        "newline in key": (
            Command(CURL, variables={"SIGNING_KEY": "a\nb"}),
            "SIGNING_KEY has a control",
        ),
        "no tools": (
            Command(CURL, (large,), variables=only_curl, interpreter=(str(shutil.which("bash")),)),
            "openssl is not installed",
        ),
        "missing file": (Command(CURL, ("nothing.jsonl",)), r"nothing\.jsonl: check"),
        "folder": (Command(CURL, (tmp_path,)), ": check the file's"),
        "empty": (Command(CURL, (empty,)), "is empty: name"),
        "no TMPDIR": (
            Command(CURL, variables={"TMPDIR": "/nowhere"}),
            "Cannot write to /nowhere: set",
        ),
        "closed port": (Command(CURL, url=closed_port), "Cannot reach"),
        "unknown host": (
            Command(CURL, url="http://history.invalid"),
            "Cannot reach http://history",
        ),
        "file URL": (
            Command(CURL, url="file:///etc"),
            "not an http:// or https:// address: correct",
        ),
        "too large": (Command(CURL, (large,), small), r"over the server's limit: .*413: .*\."),
        "silent": (
            Command(CURL, url=stub.url("silent"), variables=short_timeout),
            "silent .*: try again",
        ),
        "stalls": (
            Command(CURL, url=stub.url("stalls"), variables=short_timeout),
            "silent .*: try again",
        ),
        "redirect": (Command(CURL, url=stub.url("redirect")), "not follow redirects: .*HTTP 307"),
        "400": (Command(CURL, url=stub.url("400")), r"refused.*HISTORY_URL .*400: Send a header\."),
        "422": (Command(CURL, url=stub.url("422")), r"damaged .*again .*422: Send it again\."),
        "503": (Command(CURL, url=stub.url("503")), r"in a minute .*503: Try \"later\"\."),
        "html": (Command(CURL, url=stub.url("html")), r"later \(HTTP 502\)"),
        "escape": (Command(CURL, url=stub.url("escape")), r"400: u001b\]0;owned"),
        "response without id": (
            Command(CURL, url=stub.url("no-id")),
            "without a bundle's id: check",
        ),
        "hangs up": (Command(CURL, url=stub.url("hangs-up")), "broke: try again"),
        "tampered": (
            Command(CURL, url=stub.url("tampered")),
            "not match the HMAC of the upload: try",
        ),
        "truncated": (Command(CURL, url=stub.url("truncated")), "broke: try again"),
    }
    assert unexpected_results(tmp_path, cases) == {}
