"""The clients of the reference server: its Node, Python and curl examples."""

import hmac
import importlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.compatibility.client import (
    SIGNING_KEY,
    Client,
    Refused,
    exchange,
    place,
    stream,
)
from tests.support.clients.sockets import dial

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="curl is not installed: apt-get install curl"
)
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="Node.js is not installed: apt-get install nodejs"
)


def run_program(*command: str | Path, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=stdin, capture_output=True, timeout=30, check=False)


class ReferenceNode(Client):
    """The reference's Node.js example: fetch() with a string, then without any header."""

    name = "the reference's Node.js example"
    form = "text"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        host, path = place(f"{server}/upload")
        body = b"".join(batches)
        head = self.head(f"POST {path} HTTP/1.1", host, "content-type: text/plain;charset=UTF-8")
        head.append(f"content-length: {len(body)}")
        with dial(server) as connection, exchange(connection, head, [body]) as answer:
            if not 200 <= answer.status < 300:
                raise Refused(answer.status)
            return f"{server}/files/{answer.read().decode()}"

    def download(self, url: str) -> bytes:
        host, path = place(url)
        head = self.head(f"GET {path} HTTP/1.1", host)
        with dial(url) as connection, exchange(connection, head) as answer:
            if not 200 <= answer.status < 300:
                raise Refused(answer.status)
            return b"".join(stream(answer))

    @staticmethod
    def head(request: str, host: str, *more: str) -> list[str]:
        return [
            request,
            f"host: {host}",
            "connection: keep-alive",
            *more,
            "accept: */*",
            "accept-language: *",
            "sec-fetch-mode: cors",
            "user-agent: node",
            "accept-encoding: gzip, deflate",
        ]


class ReferenceNodeItself(ReferenceNode):
    """The same, by the Node.js that is installed here."""

    UPLOAD = """
        const parts = []
        for await (const part of process.stdin) parts.push(part)
        const body = Buffer.concat(parts).toString('utf-8')
        const answer = await fetch(process.argv[1] + '/upload', {method: 'POST', body})
        if (!answer.ok) process.exit(3)
        process.stdout.write(process.argv[1] + '/files/' + await answer.text())
    """
    DOWNLOAD = """
        const answer = await fetch(process.argv[1])
        if (!answer.ok) process.exit(3)
        if (answer.redirected || answer.headers.has('content-encoding')) process.exit(4)
        process.stdout.write(await answer.text())
    """

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        return self.node(self.UPLOAD, server, b"".join(batches)).decode()

    def download(self, url: str) -> bytes:
        return self.node(self.DOWNLOAD, url)

    def node(self, script: str, argument: str, stdin: bytes = b"") -> bytes:
        done = run_program("node", "--input-type=module", "--eval", script, argument, stdin=stdin)
        if done.returncode:
            code = done.returncode
            raise Refused(code) if code == 3 else ConnectionError(done.stderr.decode())
        return done.stdout


class ReferencePython(Client):
    """The reference's Python example of April 2024, with requests itself; it wants exactly 200."""

    name = "the reference's Python example"
    signs = True

    def __init__(self) -> None:
        self.requests: Any = importlib.import_module("requests")  # it came with moto
        self.hmac = ""

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        self.hmac = hmac.new(SIGNING_KEY.encode(), body, "sha256").hexdigest()
        answer = self.ask("POST", f"{server}/upload", {"X-HMAC": self.hmac}, body)
        return f"{server}/files/{answer.text}"

    def download(self, url: str) -> bytes:
        proof = {"X-HMAC": self.hmac, "X-SIGNING-KEY": SIGNING_KEY.encode()}
        try:
            content: bytes = self.ask("GET", url, proof).content
        except self.requests.exceptions.ChunkedEncodingError as error:
            raise ConnectionError from error
        return content

    def ask(self, method: str, url: str, headers: Any, body: bytes | None = None) -> Any:
        with self.requests.Session() as session:
            session.trust_env = False
            answer = session.request(method, url, headers=headers, data=body)
        assert not answer.history
        assert "Content-Encoding" not in answer.headers
        if answer.status_code != 200:
            raise Refused(answer.status_code)
        return answer


class ReferenceCurl(Client):
    """The two lines of the reference's README: a form without a proof, then both headers."""

    name = "the reference's curl lines"
    signs = True

    def __init__(self) -> None:
        self.hmac = ""

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        self.hmac = hmac.new(SIGNING_KEY.encode(), body, "sha256").hexdigest()
        form = ["--request", "POST", "--form", "file=@-;filename=message_bundle.aes"]
        return f"{server}/files/{curl(f'{server}/upload', *form, stdin=body).decode()}"

    def download(self, url: str) -> bytes:
        proof = ["--header", f"X-HMAC: {self.hmac}", "--header", f"X-SIGNING-KEY: {SIGNING_KEY}"]
        return curl(url, *proof, "--output", "-")


def curl(url: str, *arguments: str | Path, stdin: bytes = b"") -> bytes:
    options = ("--disable", "--silent", "--show-error", "--noproxy", "*")
    done = run_program("curl", *options, *arguments, url, stdin=stdin)
    if done.returncode:
        raise ConnectionError(done.returncode, done.stderr.decode())
    return done.stdout
