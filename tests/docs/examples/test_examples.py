"""The examples run as users run them: as processes, on a terminal, interrupted with Ctrl-C."""

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

from service.http.auth.authorizer import hash_token
from tests.docs.examples.sandbox import (
    CURL,
    FETCH,
    KEYS,
    SAMPLE_HISTORY,
    UNKNOWN_BUNDLE,
    UNUSUAL_KEYS,
    UPLOAD,
    Command,
    Result,
    Sandbox,
    decrypt,
    printed_variables,
    sign,
    signing_key,
    wait,
)
from tests.docs.examples.stub_server import StubServer
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.services.thread import Service, StartService

MIB = 1 << 20


def test_sample_history_can_be_fetched_with_the_printed_command(
    sandbox: Sandbox, service: Service
) -> None:
    uploaded = sandbox.run(Command(UPLOAD, url=service.url))
    assert (uploaded.status, uploaded.stderr) == (0, "")
    bundle_id = printed_variables(uploaded)["BUNDLE_ID"]
    assert str(UUID(bundle_id)) == bundle_id

    printed_command = uploaded.stdout.splitlines()[-1]
    shell = ("bash", "-c", printed_command)
    fetched = sandbox.run(Command(FETCH, url=service.url, interpreter=shell))
    assert (fetched.status, fetched.stderr) == (0, "")
    assert sandbox.files() == {f"cwd/messages_bundle_{bundle_id}": SAMPLE_HISTORY.read_bytes()}
    assert (sandbox.cwd / f"messages_bundle_{bundle_id}").stat().st_mode & 0o777 == 0o600


def test_any_file_can_be_transferred_with_unusual_keys(sandbox: Sandbox, service: Service) -> None:
    plain = random.Random(1).randbytes(MIB - 1)  # pyAesCrypt 6.1.1 pads such a size incorrectly.
    source = sandbox.path / "a history.bin"
    target = sandbox.cwd / "a target"
    target.write_bytes(b"old content")
    source.write_bytes(plain)
    url = f"{service.url}/"

    uploaded = sandbox.run(Command(UPLOAD, (source,), url, UNUSUAL_KEYS))
    assert (uploaded.status, uploaded.stderr) == (0, "")
    variables = printed_variables(uploaded)
    stored = httpx.get(
        f"{service.url}/files/{variables['BUNDLE_ID']}",
        headers={
            b"X-HMAC": variables["HMAC_VALUE"].encode(),
            b"X-SIGNING-KEY": signing_key(UNUSUAL_KEYS),
        },
    )
    assert stored.status_code == 200
    assert sign(stored.content, UNUSUAL_KEYS) == variables["HMAC_VALUE"]
    assert decrypt(stored.content, UNUSUAL_KEYS) == plain

    upper_case = {name: value.upper() for name, value in variables.items()}
    fetched = sandbox.run(Command(FETCH, (target,), url, {**UNUSUAL_KEYS, **upper_case}))
    assert (fetched.status, fetched.stderr) == (0, "")
    assert sandbox.files() == {"cwd/a target": plain}


@pytest.mark.parametrize("keys", [KEYS, UNUSUAL_KEYS], ids=["plain", "unusual"])
def test_curl_script_transfers_a_file_without_keys_in_process_arguments(
    sandbox: Sandbox, service: Service, keys: Mapping[str, str | bytes]
) -> None:
    log = sandbox.path / "commands.log"
    wrappers = sandbox.path / "bin"
    wrappers.mkdir(parents=True)
    for name in ("cat", "cmp", "curl", "cut", "head", "mktemp", "od", "openssl", "sed", "tr"):
        wrapper = wrappers / name
        wrapper.write_text(
            f'#!/bin/sh\necho "{name} $*" >> "{log}"\nexec {shutil.which(name)} "$@"\n'
        )
        wrapper.chmod(0o755)
    source = sandbox.path / "- a history.bin"
    source.write_bytes(random.Random(2).randbytes(2 * MIB + 1))
    arguments = (source,) if keys is UNUSUAL_KEYS else ()

    variables = {**keys, "PATH": f"{wrappers}:{os.environ['PATH']}"}
    result = sandbox.run(Command(CURL, arguments, f"{service.url}/", variables))
    assert (result.status, result.stderr) == (0, "")
    assert sandbox.files() == {}

    bundle_id, bundle_hmac = (line.split()[-1] for line in result.stdout.splitlines()[:2])
    stored = httpx.get(
        f"{service.url}/files/{bundle_id}",
        headers={b"X-HMAC": bundle_hmac.encode(), b"X-SIGNING-KEY": signing_key(keys)},
    )
    assert stored.status_code == 200
    assert stored.content.startswith(b"Salted__")
    logged_commands = log.read_bytes()
    assert b"\ncurl " in logged_commands
    assert b"\nopenssl " in logged_commands
    for key in keys.values():
        assert os.fsencode(key).strip() not in logged_commands


def test_progress_is_shown_on_a_terminal(sandbox: Sandbox, service: Service) -> None:
    """All other tests run the scripts without a terminal, and check that they show no progress."""
    uploaded = sandbox.run_on_terminal(Command(UPLOAD, url=service.url))
    assert "encrypt: 100%" in uploaded.stderr
    assert "upload: 100%" in uploaded.stderr
    fetched = sandbox.run_on_terminal(
        Command(FETCH, url=service.url, variables=printed_variables(uploaded))
    )
    assert "fetch: 100%" in fetched.stderr
    assert "decrypt: 100%" in fetched.stderr
    assert "100.0%" in sandbox.run_on_terminal(Command(CURL, url=service.url)).stderr


MEASURE_MEMORY = """\
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes. macOS reports the memory in bytes, Linux in KiB."""


def test_examples_need_little_memory_for_a_large_file(sandbox: Sandbox, service: Service) -> None:
    source = sandbox.path / "history"
    block = random.Random(3).randbytes(MIB)
    sandbox.path.mkdir(parents=True)
    with source.open("wb") as file:
        file.writelines(block for _ in range(32))

    def peak_memory(script: str, *arguments: str | Path, **variables: str) -> tuple[int, Result]:
        # A child has the memory of its parent until exec, so a small process starts the script.
        runner = "bash" if script == CURL else sys.executable
        interpreter = (sys.executable, "-c", MEASURE_MEMORY, runner)
        result = sandbox.run(Command(script, arguments, service.url, variables, interpreter))
        assert (result.status, result.stderr) == (0, "")
        return int(result.stdout.splitlines()[-1]) * MAXRSS_UNIT, result

    with ThreadPoolExecutor() as pool:
        curl_future = pool.submit(peak_memory, CURL, source)
        upload, uploaded = peak_memory(UPLOAD, source)
        fetch, _ = peak_memory(FETCH, "out", **printed_variables(uploaded))
        curl, _ = curl_future.result()
    print(f"peak: upload {upload / MIB:.0f}, fetch {fetch / MIB:.0f}, curl {curl / MIB:.0f} MiB")
    assert sandbox.files()["cwd/out"] == block * 32
    assert max(upload, fetch) < 80 * MIB  # Python and httpx alone take 40 MiB.
    assert curl < 40 * MIB


def test_signing_key_is_not_sent_to_the_target_of_a_redirect(
    sandbox: Sandbox, stub: StubServer
) -> None:
    (sandbox.cwd / ".curlrc").write_text("location\n")
    variables = {**UNKNOWN_BUNDLE, "HOME": str(sandbox.cwd), "SIGNING_KEY": "only here"}
    assert sandbox.run(Command(FETCH, url=stub.url("redirect"), variables=variables)).status == 1
    assert b"only here" in stub.request_heads.get(timeout=5)
    assert sandbox.run(Command(CURL, url=stub.url("redirect"), variables=variables)).status == 1
    assert stub.request_heads.get(timeout=5).startswith(b"POST")
    assert stub.request_heads.empty()


def test_interrupted_script_leaves_no_files_and_prints_nothing(
    tmp_path: Path, stub: StubServer
) -> None:
    interrupts = [
        (UPLOAD, "silent", signal.SIGINT, 130),
        (FETCH, "stalls", signal.SIGINT, 130),
        (FETCH, "stalls", signal.SIGTERM, 143),
        (CURL, "silent", signal.SIGINT, 130),
    ]
    # Scripts would inherit an ignored SIGINT, so do not ignore it while they start.
    previous_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = []
        for number, (script, response_name, *_) in enumerate(interrupts):
            sandbox = Sandbox(tmp_path / str(number))
            command = Command(script, url=stub.url(response_name), variables=UNKNOWN_BUNDLE)
            running.append((sandbox, sandbox.start(command)))
    finally:
        signal.signal(signal.SIGINT, previous_handler)
    for _ in interrupts:
        stub.request_heads.get(timeout=20)
    for (script, _, signal_number, status), (sandbox, process) in zip(
        interrupts, running, strict=True
    ):
        # The temporary file of upload-bundle.py has no name, so it is not listed.
        assert bool(sandbox.files()) == (script != UPLOAD)
        os.killpg(process.pid, signal_number)
        assert wait(process) == Result(status, "", "")
        assert sandbox.files() == {}


@pytest.mark.parametrize("script", [UPLOAD, FETCH, CURL])
def test_help_and_usage_are_printed(sandbox: Sandbox, script: str) -> None:
    help_result = sandbox.run(Command(script, ("--help",), variables=dict.fromkeys(KEYS)))
    assert (help_result.status, help_result.stderr) == (0, "")
    for name in ("usage: ", "SIGNING_KEY", "AES_KEY", "HISTORY_URL", "http://localhost:5558"):
        assert name in help_result.stdout
    usage_error = sandbox.run(Command(script, ("one", "two")))
    assert usage_error.status == 2
    assert usage_error.stderr.startswith("usage: ")


def test_sample_history_has_realistic_messages() -> None:
    messages = [json.loads(line) for line in SAMPLE_HISTORY.read_text().splitlines()]
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


TOKEN = LEAK_DETECTOR.add_key("the-upload-token-of-an-example")


@pytest.mark.parametrize("script", [UPLOAD, CURL])
def test_upload_token_comes_from_a_variable_or_the_url(
    sandbox: Sandbox, start_service: StartService, script: str
) -> None:
    url = start_service(upload_tokens=f"app:{hash_token(TOKEN)}").url
    for command in (
        Command(script, (), url, {"HISTORY_TOKEN": TOKEN}),
        Command(script, (), f"{url}/t/{TOKEN}/"),
    ):
        result = sandbox.run(command)
        assert (result.status, result.stderr) == (0, "")
    for token in (None, "wrong", "two words", "\u00e4", "a\r\nX-A: b"):
        result = sandbox.run(Command(script, (), url, {"HISTORY_TOKEN": token}))
        assert result.status == 1
        assert "HISTORY_TOKEN" in result.stderr
