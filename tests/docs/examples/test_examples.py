"""The examples as people run them: as processes, with keys exported, on a terminal, with Ctrl-C."""

import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from tests.docs.examples.desk import (
    CURL,
    FETCH,
    HISTORY,
    KEYS,
    ODD_KEYS,
    TICKET,
    UPLOAD,
    Call,
    Desk,
    Result,
    decrypt,
    finish,
    sign,
    signing_key,
    ticket,
)
from tests.docs.examples.stub import Stub
from tests.support.services.thread import Service

MIB = 1 << 20


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
