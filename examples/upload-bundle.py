#!/usr/bin/env python3
"""Encrypt a message history, sign it and upload it: the old device's half of a transfer.

The history is encrypted into the AES Crypt format, and the HMAC-SHA256 of the encrypted bytes is
uploaded beside them. Neither key is: they reach the new device some other way.

environment:
  SIGNING_KEY   signs the bundle; long and random, such as `openssl rand -hex 32` prints
  AES_KEY       encrypts it; likewise
  HISTORY_URL   the server (default: http://localhost:5558)
"""

import argparse
import hashlib
import hmac
import json
import os
import re
import shlex
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import httpx
    import pyAesCrypt
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"upload-bundle: {error}: run `python3 -m pip install -r requirements.txt` first.")
except KeyboardInterrupt:
    sys.exit(130)

NEEDED = ("SIGNING_KEY", "AES_KEY")
CHUNK = 64 * 1024
ADVICE = {  # by status, else by its first digit
    408: "The upload was too slow: try again on a better connection",
    413: "The bundle is over the server's limit: upload a shorter history",
    422: "The bundle was damaged on its way: upload it again",
    503: "The server can take no bundle right now: try again in a minute",
    3: "An upload follows no redirect: set HISTORY_URL to the server's new address",
    4: "The server refused the upload: see its reason, and check HISTORY_URL",
    5: "The server failed: try again later",
}


class Failure(Exception):
    """One sentence for the user: what went wrong, and what to do next."""


def read_keys() -> tuple[bytes, str]:
    """SIGNING_KEY as the bytes that an HTTP header carries, and AES_KEY as text."""
    if missing := [name for name in NEEDED if not os.environ.get(name, "").strip(" \t")]:
        raise Failure(f"Unset or empty: {', '.join(missing)}: export a value first (see --help).")
    # HTTP drops white space around a header's value, so it cannot be part of the key.
    signing_key = os.fsencode(os.environ["SIGNING_KEY"]).strip(b" \t")
    if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", signing_key):
        raise Failure("SIGNING_KEY has a control character in it: HTTP needs a key without.")
    try:
        aes_key = os.fsencode(os.environ["AES_KEY"]).decode("utf-8")
    except UnicodeDecodeError:
        raise Failure("AES_KEY is not UTF-8 text: use another key.") from None
    if len(aes_key) > 1024:  # noqa: PLR2004
        raise Failure("AES_KEY is over the 1024 characters of AES Crypt: use a shorter key.")
    return signing_key, aes_key


class SignedFile:
    """Signs what is written to a file, which saves a second pass over the bundle."""

    def __init__(self, file: IO[bytes], key: bytes) -> None:
        self.file = file
        self.hmac = hmac.new(key, digestmod=hashlib.sha256)

    def write(self, data: bytes) -> int:
        self.hmac.update(data)
        return self.file.write(data)


def encrypt(history: Path, bundle: IO[bytes], signing_key: bytes, aes_key: str) -> str:
    """Write the encrypted history to `bundle`; returns the bundle's HMAC in hex."""
    signed = SignedFile(bundle, signing_key)
    with history.open("rb") as file:
        if not file.peek(1):
            raise Failure(f"{history} is empty: name a file with messages in it.")
        size = os.fstat(file.fileno()).st_size or None
        with tqdm.wrapattr(file, "read", total=size, desc="encrypt", disable=None) as plain:
            pyAesCrypt.encryptStream(plain, signed, aes_key, CHUNK)
    return signed.hmac.hexdigest()


@contextmanager
def connect(url: str) -> Iterator[httpx.Client]:
    """An HTTP client that waits a minute at most, and whose troubles become a `Failure`."""
    try:
        with httpx.Client(base_url=url, timeout=httpx.Timeout(60, connect=10)) as client:
            yield client
    except (httpx.ConnectError, httpx.ConnectTimeout, OverflowError) as error:
        raise Failure(f"Cannot reach {url} ({error}): is it up, and HISTORY_URL right?") from error
    except httpx.TimeoutException as error:
        raise Failure(f"{url} was silent for a minute: try again later.") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, ImportError, ValueError) as error:
        raise Failure(f"Correct HISTORY_URL ({url}) or a proxy variable: {error}") from error
    except httpx.TransportError as error:
        raise Failure(f"The connection to {url} broke: try again.") from error


def refusal(response: httpx.Response) -> Failure:
    """Advice on an answer other than 200, with the `detail` of its problem+json (RFC 9457)."""
    status = response.status_code
    advice = ADVICE.get(status) or ADVICE.get(status // 100) or ADVICE[4]
    try:  # 64 KiB at most: a server that talks on is not listened to
        reason = str(json.loads(next(response.iter_raw(CHUNK), b""))["detail"])
    except (httpx.TransportError, LookupError, RecursionError, TypeError, ValueError):
        reason = response.headers.get("Location", response.reason_phrase)
    # These are the server's words, and a terminal obeys control characters.
    reason = "".join(filter(str.isprintable, reason))[:300]
    return Failure(f"{advice} (HTTP {status}: {reason})")


def upload(url: str, bundle: IO[bytes], bundle_hmac: str) -> str:
    """Stream the bundle to the server; returns the id under which it is kept."""
    size = bundle.seek(0, os.SEEK_END)
    bundle.seek(0)
    headers = {"Content-Length": str(size), "X-HMAC": bundle_hmac, "Accept-Encoding": "identity"}
    with (
        connect(url) as client,
        tqdm.wrapattr(bundle, "read", total=size, desc="upload", disable=None) as body,
        client.stream(
            "POST", "/upload", headers=headers, content=iter(lambda: body.read(CHUNK), b"")
        ) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise refusal(response)
        answer = next(response.iter_raw(CHUNK), b"")
    try:
        return str(uuid.UUID(answer.decode("ascii")))
    except ValueError:
        raise Failure(f"{url} answered without a bundle's id: check HISTORY_URL.") from None


def main() -> None:
    """Encrypt, upload, and tell how to fetch; what fails becomes one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    example = Path(__file__).with_name("test_bundle.jsonl")
    parser.add_argument("file", nargs="?", type=Path, default=example, help="default: %(default)s")
    history: Path = parser.parse_args().file
    url = os.environ.get("HISTORY_URL") or "http://localhost:5558"
    try:
        signing_key, aes_key = read_keys()
        with tempfile.TemporaryFile() as bundle:  # it has no name, so nothing can leave it behind
            bundle_hmac = encrypt(history, bundle, signing_key, aes_key)
            bundle_id = upload(url, bundle, bundle_hmac)
    except Failure as failure:
        sys.exit(f"upload-bundle: {failure}")
    except OSError as error:
        place = error.filename or "the temporary file (see TMPDIR)"
        sys.exit(f"upload-bundle: {place}: {error.strerror}: check its name, rights and disk.")
    except KeyboardInterrupt:
        sys.exit(130)
    fetch = shlex.quote(str(Path(sys.argv[0]).with_name("fetch-bundle.py")))
    print(f"Bundle id: {bundle_id}\nHMAC: {bundle_hmac}\nNext, with the same keys exported:")
    print(f"BUNDLE_ID={bundle_id} HMAC_VALUE={bundle_hmac} python3 {fetch}")


if __name__ == "__main__":
    main()
