#!/usr/bin/env python3
"""Fetch a bundle, verify it and decrypt it: the new device's half of a transfer.

environment (upload-bundle.py prints the first two, and both scripts share the rest):
  BUNDLE_ID     the id under which the server keeps the bundle
  HMAC_VALUE    the HMAC-SHA256 of the encrypted bundle, in hex
  SIGNING_KEY   proves to the server that the bundle is ours to read
  AES_KEY       decrypts it; never leaves this machine
  HISTORY_URL   the server (default: http://localhost:5558)
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

NEEDED = ("BUNDLE_ID", "HMAC_VALUE", "SIGNING_KEY", "AES_KEY")
CHUNK = 64 * 1024
ADVICE = {  # by status, else by its first digit
    401: "The proof does not hold: check SIGNING_KEY and HMAC_VALUE",
    404: "The bundle is unknown or expired: check BUNDLE_ID, or have it uploaded again",
    503: "The server can give no bundle right now: try again in a minute",
    3: "No redirect is followed with a key in hand: set HISTORY_URL to the server's new address",
    4: "The server refused the download: see its reason, and check HISTORY_URL",
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


def read_ticket() -> tuple[str, str]:
    """The bundle's id and HMAC, checked: the id becomes part of a URL and of a file's name."""
    try:
        bundle_id = str(uuid.UUID(os.environ["BUNDLE_ID"].strip()))
    except ValueError:
        raise Failure("BUNDLE_ID is no UUID: copy it again from upload-bundle.py.") from None
    bundle_hmac = os.environ["HMAC_VALUE"].strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", bundle_hmac):
        raise Failure("HMAC_VALUE is not 64 hex digits: copy it again from upload-bundle.py.")
    return bundle_id, bundle_hmac


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


def download(url: str, ticket: tuple[str, str], signing_key: bytes, bundle: IO[bytes]) -> None:
    """Stream the bundle into a file; a `Failure` unless it is, byte for byte, what was signed."""
    bundle_id, bundle_hmac = ticket
    headers = {b"X-HMAC": bundle_hmac.encode(), b"X-SIGNING-KEY": signing_key}
    headers[b"Accept-Encoding"] = b"identity"
    arrived = hmac.new(signing_key, digestmod=hashlib.sha256)
    with (
        connect(url) as client,
        client.stream("GET", f"/files/{bundle_id}", headers=headers) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise refusal(response)
        size = int(response.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(bundle, "write", total=size, desc="fetch", disable=None) as file:
            for chunk in response.iter_raw(CHUNK):
                arrived.update(chunk)
                file.write(chunk)
    if not hmac.compare_digest(arrived.hexdigest(), bundle_hmac):
        raise Failure("What arrived is not what was signed: fetch it, or have it uploaded, again.")


def decrypt(bundle: IO[bytes], history: IO[bytes], aes_key: str) -> None:
    """Decrypt a bundle of the AES Crypt format into `history`."""
    size = bundle.seek(0, os.SEEK_END)
    bundle.seek(0)
    try:
        with tqdm.wrapattr(bundle, "read", total=size, desc="decrypt", disable=None) as file:
            pyAesCrypt.decryptStream(file, history, aes_key, CHUNK)
        # Where the last block ends with a CHUNK, pyAesCrypt 6.1.1 leaves the padding in. The byte
        # before the format's closing HMAC is the plain text's size modulo 16.
        bundle.seek(-33, os.SEEK_END)
        history.truncate(history.tell() - (history.tell() - bundle.read(1)[0]) % 16)
    except (IndexError, ValueError) as error:  # the first where a bundle ends within its header
        raise Failure(f"The intact bundle does not open: check AES_KEY ({error})") from error


@contextmanager
def replacing(output: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name `output` if all goes well, and vanishes if anything does not."""
    if output.exists() and not output.is_file():
        raise Failure(f"{output} is not a file: name another output.")
    # Beside the output, for a move within one file system cannot stop half-way.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".bundle-") as directory:
        path = Path(directory, "history")
        path.touch(mode=0o600)  # these are private messages
        with path.open("wb") as file:
            yield file
        path.replace(output)


def main() -> None:
    """Fetch, verify, decrypt; what fails becomes one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", nargs="?", type=Path, help="default: messages_bundle_{id}")
    output: Path = parser.parse_args().output
    url = os.environ.get("HISTORY_URL") or "http://localhost:5558"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so nothing is left behind
    try:
        signing_key, aes_key = read_keys()
        ticket = read_ticket()
        output = output or Path(f"messages_bundle_{ticket[0]}")
        with replacing(output) as history, tempfile.TemporaryFile() as bundle:
            download(url, ticket, signing_key, bundle)
            decrypt(bundle, history, aes_key)
    except Failure as failure:
        sys.exit(f"fetch-bundle: {failure}")
    except OSError as error:
        sys.exit(
            f"fetch-bundle: {output} or TMPDIR: {error.strerror}: check name, rights and disk."
        )
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"The history is in {output}")


if __name__ == "__main__":
    main()
