"""What can go wrong, as stable codes that know nothing of HTTP; `problems` gives each its status.

The tree:

    HistoryError
    ├── MissingHeader, MalformedHeader, MalformedForm, EmptyBundle    the request is not right
    ├── InvalidHmac                                                  the proof does not hold
    ├── PreconditionFailed, RangeNotSatisfiable                      it holds, but not so
    ├── NotFound                                                     no bundle to be had there
    ├── BundleTooLarge, UploadTimeout                                the upload was given up
    ├── DigestMismatch, HmacMismatch                                 it is not what was announced
    ├── Overloaded, Draining                                         try another replica, or later
    └── StorageUnavailable                                           S3 failed; nothing is known

    ClientGone                                                       nobody is there to be answered
    SettingsError, AddressInUse, BucketError                         said at the command line
"""

from collections.abc import Sequence
from typing import ClassVar


class HistoryError(Exception):
    """An error for the caller: `code` never changes, `detail` is one sentence that says what to do.

    `detail` reaches the client as it stands, so it holds no cause: chain that with `from`.
    """

    code: ClassVar[str]
    sentence: ClassVar[str]

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail if detail is not None else self.sentence
        super().__init__(self.detail)


class MissingHeader(HistoryError):
    """A proof header is absent or empty."""

    code = "missing_header"

    def __init__(self, name: str) -> None:
        super().__init__(f"Send the header {name}: it is absent or empty.")


class MalformedHeader(HistoryError):
    """A header is there, but it is not what the contract says."""

    code = "malformed_header"


class MalformedForm(HistoryError):
    """A multipart/form-data body that holds no bundle, or not exactly one."""

    code = "malformed_form"


class EmptyBundle(HistoryError):
    """Not one byte arrived: the mark of a stream that was lost on its way."""

    code = "empty_bundle"
    sentence = "The upload was empty: send the bundle's bytes as the request's body."


class InvalidHmac(HistoryError):
    """The HMAC is not the bundle's under this key, or not the one stored with it."""

    code = "invalid_hmac"
    sentence = (
        "The proof does not hold: X-HMAC must be the bundle's HMAC-SHA256 under X-SIGNING-KEY."
    )


class NotFound(HistoryError):
    """No such bundle, or no longer."""

    code = "not_found"
    sentence = "There is no such bundle here, or it has expired: ask its sender for a new one."


class BundleTooLarge(HistoryError):
    """More bytes than the configured limit, declared or sent."""

    code = "bundle_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"Bundles of up to {limit} bytes are taken here: send a smaller one.")


class UploadTimeout(HistoryError):
    """The client sent nothing for the read time-out, or too little on average."""

    code = "upload_timeout"
    sentence = "The upload stalled and was dropped: send it again."


class DigestMismatch(HistoryError):
    """What arrived does not have the SHA-256 of `Content-Digest` or `Repr-Digest`."""

    code = "digest_mismatch"
    sentence = "What arrived does not have the digest that was sent with it: upload it again."


class HmacMismatch(HistoryError):
    """What arrived does not have the HMAC `X-HMAC` under the key that came along."""

    code = "hmac_mismatch"
    sentence = "What arrived does not have this X-HMAC under this X-SIGNING-KEY: upload it again."


class PreconditionFailed(HistoryError):
    """`If-Match` names another bundle."""

    code = "precondition_failed"
    sentence = "The bundle is not the one that If-Match names: fetch it anew, from its start."


class RangeNotSatisfiable(HistoryError):
    """The range begins behind the bundle's end; `size` is in bytes."""

    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"The bundle is {size} bytes long: ask for a range within it.")
        self.size = size


class Overloaded(HistoryError):
    """The memory budget had nothing free for as long as the queue time-out."""

    code = "overloaded"
    sentence = "This server has its hands full: try again shortly."


class Draining(HistoryError):
    """The process is about to end and takes on no new work."""

    code = "draining"
    sentence = "This server is about to stop: try again, and another one will answer."


class StorageUnavailable(HistoryError):
    """S3 failed, refused, or could not be reached; whether the bundle exists is not known."""

    code = "storage_unavailable"
    sentence = "The storage behind this server does not answer: try again shortly."


class ClientGone(Exception):
    """The client hung up before its answer; what was done for it is dropped."""

    code = "client_gone"


class SettingsError(Exception):
    """Every wrong setting at once, a line each: its name and what it should be."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class AddressInUse(Exception):
    """The address to listen on cannot be had; the message says how to go on."""


class BucketError(Exception):
    """The bucket cannot be made or set up; the message says how to go on."""
