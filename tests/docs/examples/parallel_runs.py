"""Many calls at the same time, and which of them fail in another way than they should."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.docs.examples.desk import CURL, Call, Desk, Result

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
