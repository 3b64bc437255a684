"""Runs many failing commands in parallel, and returns those that do not fail as expected."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.docs.examples.sandbox import CURL, Command, Result, Sandbox

Cases = dict[str, tuple[Command, str]]
"""By name: a command that fails, and a regular expression for its error message."""


FORK_SCRIPT = """\
import gc, io, json, os, runpy, sys
import httpx, pyAesCrypt, tqdm

# These two calls import more modules, so that the children need not.
httpx.Client().close()
pyAesCrypt.encryptStream(io.BytesIO(), io.BytesIO(), "")
gc.freeze()  # Otherwise the garbage collector of each child would copy all memory pages.
names = {}
for name, job in json.load(sys.stdin).items():
    if child := os.fork():
        names[child] = name
        continue
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for descriptor in (1, 2):
        os.dup2(os.open(job["outputs"][descriptor - 1], os.O_WRONLY | os.O_CREAT), descriptor)
    exec(job["setup"])
    sys.argv = job["argv"]
    if "upload" in sys.argv[0]:  # Deriving the AES key takes long, and its value is irrelevant.
        pyAesCrypt.crypto.stretch = lambda key, iv: bytes(32)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()
status = {names[child]: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in names}
json.dump(status, sys.stdout)
"""


def run_forked(commands: Mapping[str, tuple[Sandbox, Command]]) -> dict[str, Result]:
    """Run Python scripts in forked processes, so that Python starts only once.

    Starting Python takes ten times as long as the work of a script.
    """
    outputs = {
        name: [sandbox.path / "stdout", sandbox.path / "stderr"]
        for name, (sandbox, _) in commands.items()
    }
    jobs = {
        name: {
            "cwd": str(sandbox.cwd),
            "environment": sandbox.environment(command),
            "outputs": [str(path) for path in outputs[name]],
            "setup": command.setup,
            "argv": command.argv[1:],
        }
        for name, (sandbox, command) in commands.items()
    }
    process = subprocess.run(
        [sys.executable, "-c", FORK_SCRIPT],
        input=json.dumps(jobs),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    return {
        name: Result(status, *(path.read_text() for path in outputs[name]))
        for name, status in json.loads(process.stdout).items()
    }


def unexpected_results(folder: Path, cases: Cases) -> dict[str, Result]:
    """Run all cases, and return the results that are not the expected failure.

    A script has to print one sentence without secrets, exit with status 1, and change no file.
    """
    commands = {name: (Sandbox(folder / name), command) for name, (command, _) in cases.items()}
    for sandbox, _ in commands.values():
        (sandbox.cwd / "out").write_bytes(b"precious")
    forked = {
        name: (sandbox, command)
        for name, (sandbox, command) in commands.items()
        if command.script != CURL and not command.interpreter
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {
            name: pool.submit(sandbox.run, command)
            for name, (sandbox, command) in commands.items()
            if name not in forked
        }
        results = run_forked(forked) if forked else {}
        results |= {name: future.result() for name, future in futures.items()}

    def is_expected(name: str) -> bool:
        (sandbox, command), message, result = commands[name], cases[name][1], results[name]
        program = command.script.removesuffix(".py")
        return (
            result.status == 1
            and re.fullmatch(rf"{program}: .+[.?)]\n", result.stderr) is not None
            and result.stderr.isascii()
            and re.search(message, result.stderr) is not None
            and re.search("signing key|AES key|Traceback", result.stderr) is None
            and (command.script == CURL or not result.stdout)
            and sandbox.files() == {"cwd/out": b"precious"}
        )

    return {name: results[name] for name in cases if not is_expected(name)}
