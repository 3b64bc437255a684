#!/usr/bin/env python3
"""Download a bundle, verify it and decrypt it: the new device's part of a transfer.

environment (upload-bundle.py prints the first two and uses the same values for the others):
  BUNDLE_ID     id of the bundle on the server
  HMAC_VALUE    HMAC-SHA256 of the bundle, in hex
  SIGNING_KEY   key of this HMAC; sent to the server as part of the proof
  AES_KEY       password that decrypts the bundle; never sent to the server
  HISTORY_URL   address of the server (default: http://localhost:5558)
"""

import argparse
import hashlib
import hmac
import json
import os
import re
import signal
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
    sys.exit(f"fetch-bundle: {error}: run `python3 -m pip install -r requirements.txt` first.")
except KeyboardInterrupt:
    sys.exit(130)

REQUIRED = ("BUNDLE_ID", "HMAC_VALUE", "SIGNING_KEY", "AES_KEY")
CHUNK_SIZE = 64 * 1024
ADVICE = {  # by HTTP status; the keys 3, 4 and 5 are for all other statuses of that class
    401: "The proof is wrong: check SIGNING_KEY and HMAC_VALUE",
    404: "The bundle is unknown or expired: check BUNDLE_ID, or ask for a new upload",
    503: "The server cannot send the bundle right now: try again in a minute",
    # A redirect would send the signing key to another address.
    3: "This script does not follow redirects: set HISTORY_URL to the new address",
    4: "The server refused the download: read its reason, and check HISTORY_URL",
    5: "The server failed: try again later",
}


class Failure(Exception):
    """An error message for the user: what went wrong, and what to do next."""


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


def read_bundle_id_and_hmac() -> tuple[str, str]:
    """Return BUNDLE_ID and HMAC_VALUE, checked: the id becomes part of a URL and a file name."""
    try:
        bundle_id = str(uuid.UUID(os.environ["BUNDLE_ID"].strip()))
    except ValueError:
        raise Failure("BUNDLE_ID is not a UUID: copy it again from upload-bundle.py.") from None
    bundle_hmac = os.environ["HMAC_VALUE"].strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", bundle_hmac):
        raise Failure("HMAC_VALUE is not 64 hex digits: copy it again from upload-bundle.py.")
    return bundle_id, bundle_hmac


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


def download(
    url: str, bundle_id: str, bundle_hmac: str, signing_key: bytes, bundle: IO[bytes]
) -> None:
    """Stream the bundle into a file; raise `Failure` unless its bytes have the expected HMAC."""
    headers = {b"X-HMAC": bundle_hmac.encode(), b"X-SIGNING-KEY": signing_key}
    headers[b"Accept-Encoding"] = b"identity"
    received_hmac = hmac.new(signing_key, digestmod=hashlib.sha256)
    with (
        connect(url) as client,
        client.stream("GET", f"/files/{bundle_id}", headers=headers) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise refusal(response)
        size = int(response.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(bundle, "write", total=size, desc="fetch", disable=None) as file:
            for chunk in response.iter_raw(CHUNK_SIZE):
                received_hmac.update(chunk)
                file.write(chunk)
    if not hmac.compare_digest(received_hmac.hexdigest(), bundle_hmac):
        raise Failure(
            "The downloaded bytes do not match HMAC_VALUE: download again, or ask for a new upload."
        )


def decrypt(bundle: IO[bytes], history: IO[bytes], aes_key: str) -> None:
    """Decrypt a bundle in the AES Crypt format and write the plain text to `history`."""
    size = bundle.seek(0, os.SEEK_END)
    bundle.seek(0)
    try:
        with tqdm.wrapattr(bundle, "read", total=size, desc="decrypt", disable=None) as file:
            pyAesCrypt.decryptStream(file, history, aes_key, CHUNK_SIZE)
        # If the last block ends exactly at a multiple of CHUNK_SIZE, pyAesCrypt 6.1.1 does not
        # remove the padding. The byte before the HMAC at the end of the file is the size of the
        # plain text modulo 16.
        bundle.seek(-33, os.SEEK_END)
        history.truncate(history.tell() - (history.tell() - bundle.read(1)[0]) % 16)
    except (IndexError, ValueError) as error:  # IndexError if the bundle ends inside its header
        raise Failure(
            f"The bundle is intact but cannot be decrypted: check AES_KEY ({error})"
        ) from error


@contextmanager
def replace_on_success(output: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `output` on success and is deleted on an error."""
    if output.exists() and not output.is_file():
        raise Failure(f"{output} is not a file: name another output file.")
    # Use the same directory: only within one file system is a rename atomic.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".bundle-") as directory:
        path = Path(directory, "history")
        path.touch(mode=0o600)  # the messages are private
        with path.open("wb") as file:
            yield file
        path.replace(output)


def main() -> None:
    """Download, verify and decrypt; on an error, print it and exit with status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", nargs="?", type=Path, help="default: messages_bundle_{id}")
    output: Path = parser.parse_args().output
    url = os.environ.get("HISTORY_URL") or "http://localhost:5558"
    # SystemExit runs the cleanup of the temporary files, which SIGTERM alone would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        signing_key, aes_key = read_keys()
        bundle_id, bundle_hmac = read_bundle_id_and_hmac()
        output = output or Path(f"messages_bundle_{bundle_id}")
        with replace_on_success(output) as history, tempfile.TemporaryFile() as bundle:
            download(url, bundle_id, bundle_hmac, signing_key, bundle)
            decrypt(bundle, history, aes_key)
    except Failure as failure:
        sys.exit(f"fetch-bundle: {failure}")
    except OSError as error:
        sys.exit(
            f"fetch-bundle: {output} or TMPDIR: {error.strerror}: "
            "check the name, the permissions and the disk."
        )
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"Wrote the decrypted history to {output}")


if __name__ == "__main__":
    main()
