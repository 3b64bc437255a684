"""The example clients of the reference server, in Node.js, Python and curl."""

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
    RequestFailed,
    host_and_path,
    read_body,
    send_request,
)
from tests.support.clients.sockets import connect_to

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="curl is not installed: apt-get install curl"
)
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="Node.js is not installed: apt-get install nodejs"
)


def run_program(*command: str | Path, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=stdin, capture_output=True, timeout=30, check=False)


class ReferenceNode(Client):
    """The reference's Node.js example: fetch() with a string, then a fetch() without headers."""

    name = "the reference's Node.js example"
    bundle_format = "text"

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        host, path = host_and_path(f"{server}/upload")
        body = b"".join(batches)
        head = self.head(f"POST {path} HTTP/1.1", host, "content-type: text/plain;charset=UTF-8")
        head.append(f"content-length: {len(body)}")
        with connect_to(server) as connection, send_request(connection, head, [body]) as response:
            if not 200 <= response.status < 300:
                raise RequestFailed(response.status)
            return f"{server}/files/{response.read().decode()}"

    def download(self, url: str) -> bytes:
        host, path = host_and_path(url)
        head = self.head(f"GET {path} HTTP/1.1", host)
        with connect_to(url) as connection, send_request(connection, head) as response:
            if not 200 <= response.status < 300:
                raise RequestFailed(response.status)
            return b"".join(read_body(response))

    @staticmethod
    def head(request: str, host: str, *entity_headers: str) -> list[str]:
        return [
            request,
            f"host: {host}",
            "connection: keep-alive",
            *entity_headers,
            "accept: */*",
            "accept-language: *",
            "sec-fetch-mode: cors",
            "user-agent: node",
            "accept-encoding: gzip, deflate",
        ]


class InstalledNode(ReferenceNode):
    """The same example, run with the Node.js of this machine."""

    UPLOAD = """
        const parts = []
        for await (const part of process.stdin) parts.push(part)
        const body = Buffer.concat(parts).toString('utf-8')
        const response = await fetch(process.argv[1] + '/upload', {method: 'POST', body})
        if (!response.ok) process.exit(3)
        process.stdout.write(process.argv[1] + '/files/' + await response.text())
    """
    DOWNLOAD = """
        const response = await fetch(process.argv[1])
        if (!response.ok) process.exit(3)
        if (response.redirected || response.headers.has('content-encoding')) process.exit(4)
        process.stdout.write(await response.text())
    """

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        return self.node(self.UPLOAD, server, b"".join(batches)).decode()

    def download(self, url: str) -> bytes:
        return self.node(self.DOWNLOAD, url)

    def node(self, script: str, argument: str, stdin: bytes = b"") -> bytes:
        process = run_program(
            "node", "--input-type=module", "--eval", script, argument, stdin=stdin
        )
        if process.returncode:
            code = process.returncode
            raise RequestFailed(code) if code == 3 else ConnectionError(process.stderr.decode())
        return process.stdout


class ReferencePython(Client):
    """The reference's Python example of April 2024, which uses requests and accepts only 200."""

    name = "the reference's Python example"
    sends_proof = True

    def __init__(self) -> None:
        self.requests: Any = importlib.import_module("requests")  # moto installs it
        self.hmac = ""

    def upload(self, server: str, batches: Sequence[bytes]) -> str:
        body = b"".join(batches)
        self.hmac = hmac.new(SIGNING_KEY.encode(), body, "sha256").hexdigest()
        response = self.send("POST", f"{server}/upload", {"X-HMAC": self.hmac}, body)
        return f"{server}/files/{response.text}"

    def download(self, url: str) -> bytes:
        proof = {"X-HMAC": self.hmac, "X-SIGNING-KEY": SIGNING_KEY.encode()}
        try:
            content: bytes = self.send("GET", url, proof).content
        except self.requests.exceptions.ChunkedEncodingError as error:
            raise ConnectionError from error
        return content

    def send(self, method: str, url: str, headers: Any, body: bytes | None = None) -> Any:
        with self.requests.Session() as session:
            session.trust_env = False
            response = session.request(method, url, headers=headers, data=body)
        assert not response.history
        assert "Content-Encoding" not in response.headers
        if response.status_code != 200:
            raise RequestFailed(response.status_code)
        return response


class ReferenceCurl(Client):
    """The two commands of the reference's README: a form without a proof, then both headers."""

    name = "the reference's curl lines"
    sends_proof = True

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
    process = run_program("curl", *options, *arguments, url, stdin=stdin)
    if process.returncode:
        raise ConnectionError(process.returncode, process.stderr.decode())
    return process.stdout
