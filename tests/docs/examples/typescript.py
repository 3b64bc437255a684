"""Compiles examples/typescript, and calls its functions in Node.js or in Chromium."""

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from selenium import webdriver

from tests.docs.examples.sandbox import EXAMPLES
from tests.support import stores

FOLDER = EXAMPLES / "typescript"
MAX_SILENCE = 180  # as in the example
TSC = FOLDER / "node_modules" / "typescript" / "bin" / "tsc"

DRIVER = """\
import { deleteArchive, downloadArchive, uploadArchive } from "./transfer-archive.js";

const hex = (buffer) => Array.from(new Uint8Array(buffer), (byte) =>
    byte.toString(16).padStart(2, "0")).join("");
const sha256 = async (bytes) => hex(await crypto.subtle.digest("SHA-256", bytes));
const functions = {
    upload: ({ server, size }, options) =>
        uploadArchive(server, new Uint8Array(size).map((_, index) => index % 251), options),
    download: async ({ bundle }, options) => sha256(await downloadArchive(bundle, options)),
    delete: async ({ bundle }, options) => String(await deleteArchive(bundle, options)),
};
const setTimer = globalThis.setTimeout;

export async function call(name, { options, speed = 1, abortAtProgress, ...args }) {
    const progress = [], waits = [], controller = new AbortController();
    const onProgress = (bytes, total) => {
        progress.push([bytes, total]);
        if (bytes >= abortAtProgress) controller.abort();
    };
    globalThis.setTimeout = (callback, wait, ...rest) => {
        const [, , caller] = new Error().stack.split("\\n");
        if (!caller.includes("transfer-archive.js")) return setTimer(callback, wait, ...rest);
        waits.push(wait / 1000);
        return setTimer(callback, wait / speed);
    };
    try {
        const all = { ...options, onProgress, signal: controller.signal };
        return { value: await functions[name](args, all), progress, waits };
    } catch ({ name, message, code, detail, status, retryAfter, stack }) {
        const error = { name, message, code, detail, status, retryAfter, stack };
        return { error, progress, waits };
    } finally {
        globalThis.setTimeout = setTimer;
    }
}
"""
"""Calls a function, and returns its result or error, its progress and its waits in seconds.

With `speed`, all waits are that many times shorter than the example wants them. Timers of others,
such as those of fetch() in Node.js, are not changed.
"""


def find_tsc() -> list[str | Path]:
    """Return the command of TypeScript's compiler. Raises `NotInstalled`."""
    node = shutil.which("node")
    pinned = json.loads((FOLDER / "package.json").read_text())["devDependencies"]["typescript"]
    manifest = TSC.parents[1] / "package.json"
    if not node or not TSC.exists() or json.loads(manifest.read_text())["version"] != pinned:
        raise stores.NotInstalled(
            f"TypeScript {pinned} is not installed: npm ci --prefix examples/typescript"
        )
    return [node, TSC]


def run_tsc(*arguments: str | Path) -> str:
    """Run TypeScript's compiler. Return what it printed: its errors, or nothing."""
    result = subprocess.run(
        [*find_tsc(), *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    output = result.stdout + result.stderr
    assert (result.returncode == 0) is (output == ""), output
    return output


def compile_example(folder: Path) -> None:
    """Compile the example into a folder, with the driver that calls it."""
    assert run_tsc("--project", FOLDER, "--outDir", folder) == ""
    (folder / "driver.js").write_text(DRIVER)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "index.html").write_text("<!doctype html><title>test</title>")


@dataclass(frozen=True)
class Outcome:
    """What a call returned or threw, and its progress and waits until then."""

    value: Any = None
    error: Mapping[str, Any] = field(default_factory=dict)
    progress: list[list[int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    @property
    def retry_waits(self) -> list[float]:
        """The waits between attempts, without the timers for silence."""
        return [wait for wait in self.waits if wait != MAX_SILENCE]


class Runtime(Protocol):
    def call(self, function: str, **arguments: object) -> Outcome: ...


class Node:
    """Calls the example in Node.js, each time in a new process."""

    SCRIPT = """\
import { call } from "./driver.js";
console.log(JSON.stringify(await call(...JSON.parse(process.argv[1]))));
"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def call(self, function: str, **arguments: object) -> Outcome:
        result = subprocess.run(
            ["node", "--input-type=module", "-e", self.SCRIPT, json.dumps([function, arguments])],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return Outcome(**json.loads(result.stdout))


class Chromium:
    """Calls the example in a page of Chromium, of another origin than the service's."""

    SCRIPT = """\
const [name, args, done] = arguments;
import(new URL("driver.js", location.href)).then((module) => module.call(name, args)).then(
    done, (error) => done({ error: { message: String(error) } }));
"""

    def __init__(self, driver: webdriver.Chrome, page_url: str) -> None:
        self._driver = driver
        self._page_url = page_url

    def call(self, function: str, **arguments: object) -> Outcome:
        self._driver.get(self._page_url)
        return Outcome(**self._driver.execute_async_script(self.SCRIPT, function, arguments))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder. Yield the URL."""
    handler = partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(10)
