#!/usr/bin/env python3
"""Encrypt a message history and upload it as a bundle: the old device's part of a transfer.

The script encrypts the history in the AES Crypt format and uploads the bundle with its HMAC-SHA256.
It sends neither key to the server. Pass both keys to the new device in another way.

environment:
  SIGNING_KEY   key of the bundle's HMAC: long and random, for example from `openssl rand -hex 32`
  AES_KEY       password that encrypts the history: long and random, as above
  HISTORY_URL   address of the server (default: http://localhost:5558)
  HISTORY_TOKEN upload token, if the server needs one
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

REQUIRED = ("SIGNING_KEY", "AES_KEY")
CHUNK_SIZE = 64 * 1024
ADVICE = {  # by HTTP status; the keys 3, 4 and 5 are for all other statuses of that class
    401: "The server needs a valid upload token: export it as HISTORY_TOKEN",
    408: "The upload was too slow: try again on a better connection",
    413: "The bundle is over the server's limit: upload a shorter history",
    422: "The bundle was damaged in transit: upload it again",
    429: "The server has had too many uploads with this token: try again later",
    503: "The server cannot accept a bundle right now: try again in a minute",
    3: "This script does not follow redirects: set HISTORY_URL to the new address",
    4: "The server refused the upload: read its reason, and check HISTORY_URL",
    5: "The server failed: try again later",
}


class Failure(Exception):
    """An error message for the user: what went wrong, and what to do next."""


def authorization() -> dict[str, str]:
    """Return the header with HISTORY_TOKEN, if that is set."""
    token = os.environ.get("HISTORY_TOKEN", "").strip(" \t")
    if re.search(r"[^!-~]", token):
        raise Failure("HISTORY_TOKEN is not printable ASCII without spaces: correct it.")
    return {"Authorization": f"Bearer {token}"} if token else {}


def read_keys() -> tuple[bytes, str]:
    """Return SIGNING_KEY as the bytes of an HTTP header value, and AES_KEY as text."""
    if missing := [name for name in REQUIRED if not os.environ.get(name, "").strip(" \t")]:
        raise Failure(f"Export a value for {', '.join(missing)} first (see --help).")
    # HTTP removes whitespace around a header value, so whitespace there cannot be part of the key.
    signing_key = os.fsencode(os.environ["SIGNING_KEY"]).strip(b" \t")
    if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", signing_key):
        raise Failure("SIGNING_KEY has a control character, which HTTP forbids: use another key.")
    try:
        aes_key = os.fsencode(os.environ["AES_KEY"]).decode("utf-8")
    except UnicodeDecodeError:
        raise Failure("AES_KEY is not UTF-8 text: use another key.") from None
    if len(aes_key) > 1024:  # noqa: PLR2004
        raise Failure("AES_KEY is over the limit of AES Crypt, 1024 characters: use a shorter key.")
    return signing_key, aes_key


class SigningWriter:
    """Writes to a file and computes the HMAC of the same bytes, so the file is not read again."""

    def __init__(self, file: IO[bytes], key: bytes) -> None:
        self.file = file
        self.hmac = hmac.new(key, digestmod=hashlib.sha256)

    def write(self, data: bytes) -> int:
        self.hmac.update(data)
        return self.file.write(data)


def encrypt(history: Path, bundle: IO[bytes], signing_key: bytes, aes_key: str) -> str:
    """Write the encrypted history to `bundle`, and return the bundle's HMAC in hex."""
    writer = SigningWriter(bundle, signing_key)
    with history.open("rb") as file:
        if not file.peek(1):
            raise Failure(f"{history} is empty: name a file that contains messages.")
        size = os.fstat(file.fileno()).st_size or None
        with tqdm.wrapattr(file, "read", total=size, desc="encrypt", disable=None) as reader:
            pyAesCrypt.encryptStream(reader, writer, aes_key, CHUNK_SIZE)
    return writer.hmac.hexdigest()


@contextmanager
def connect(url: str) -> Iterator[httpx.Client]:
    """Open an HTTP client with a timeout of one minute; its errors are raised as `Failure`."""
    try:
        with httpx.Client(base_url=url, timeout=httpx.Timeout(60, connect=10)) as client:
            yield client
    except (httpx.ConnectError, httpx.ConnectTimeout, OverflowError) as error:
        raise Failure(
            f"Cannot reach {url} ({error}): check that the server runs and HISTORY_URL is correct."
        ) from error
    except httpx.TimeoutException as error:
        raise Failure(f"{url} was silent for a minute: try again later.") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, ImportError, ValueError) as error:
        raise Failure(f"Correct HISTORY_URL ({url}) or a proxy variable: {error}") from error
    except httpx.TransportError as error:
        raise Failure(f"The connection to {url} broke: try again.") from error


def refusal(response: httpx.Response) -> Failure:
    """Return advice on a response other than 200, with the server's `detail` (RFC 9457)."""
    status = response.status_code
    advice = ADVICE.get(status) or ADVICE.get(status // 100) or ADVICE[4]
    try:  # Read at most 64 KiB, because a faulty server may never end its response.
        reason = str(json.loads(next(response.iter_raw(CHUNK_SIZE), b""))["detail"])
    except (httpx.TransportError, LookupError, RecursionError, TypeError, ValueError):
        reason = response.headers.get("Location", response.reason_phrase)
    # The text comes from the server: remove control characters, which could control the terminal.
    reason = "".join(filter(str.isprintable, reason))[:300]
    return Failure(f"{advice} (HTTP {status}: {reason})")


def upload(url: str, bundle: IO[bytes], bundle_hmac: str, authorization: dict[str, str]) -> str:
    """Stream the bundle to the server, and return its id."""
    size = bundle.seek(0, os.SEEK_END)
    bundle.seek(0)
    headers = {"Content-Length": str(size), "X-HMAC": bundle_hmac, "Accept-Encoding": "identity"}
    headers |= authorization
    with (
        connect(url) as client,
        tqdm.wrapattr(bundle, "read", total=size, desc="upload", disable=None) as body,
        client.stream(
            "POST", "/upload", headers=headers, content=iter(lambda: body.read(CHUNK_SIZE), b"")
        ) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise refusal(response)
        bundle_id = next(response.iter_raw(CHUNK_SIZE), b"")
    try:
        return str(uuid.UUID(bundle_id.decode("ascii")))
    except ValueError:
        raise Failure(f"{url} answered without a bundle's id: check HISTORY_URL.") from None


def main() -> None:
    """Encrypt, upload, and print how to download; on an error, print it and exit with status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sample = Path(__file__).with_name("test_bundle.jsonl")
    parser.add_argument("file", nargs="?", type=Path, default=sample, help="default: %(default)s")
    history: Path = parser.parse_args().file
    url = os.environ.get("HISTORY_URL") or "http://localhost:5558"
    try:
        signing_key, aes_key = read_keys()
        header = authorization()
        # A temporary file without a name disappears even if the process is killed.
        with tempfile.TemporaryFile() as bundle:
            bundle_hmac = encrypt(history, bundle, signing_key, aes_key)
            bundle_id = upload(url, bundle, bundle_hmac, header)
    except Failure as failure:
        sys.exit(f"upload-bundle: {failure}")
    except OSError as error:
        path = error.filename or "the temporary file (see TMPDIR)"
        sys.exit(f"upload-bundle: {path}: {error.strerror}: check its name, permissions and disk.")
    except KeyboardInterrupt:
        sys.exit(130)
    fetch_script = shlex.quote(str(Path(sys.argv[0]).with_name("fetch-bundle.py")))
    print(f"Bundle id: {bundle_id}\nHMAC: {bundle_hmac}")
    print("To download the bundle, export the same keys and run:")
    print(f"BUNDLE_ID={bundle_id} HMAC_VALUE={bundle_hmac} python3 {fetch_script}")


if __name__ == "__main__":
    main()
