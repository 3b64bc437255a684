"""Errors with stable codes. They know nothing of HTTP: `http.problems` gives each code its status.

The tree:

    HistoryError
    ├── MissingHeader, MalformedHeader, MalformedForm, EmptyBundle    the request is invalid
    ├── InvalidHmac, TooManyAttempts                                 the proof is wrong, or was too
    │                                                                often
    ├── Unauthorized, TooManyUploads                                 the caller may not upload, or
    │                                                                not so much
    ├── PreconditionFailed, RangeNotSatisfiable                      the proof is right, but
    │                                                                the condition or range is not
    ├── NotFound                                                     no such bundle
    ├── BundleTooLarge, UploadTimeout                                the server stopped the upload
    ├── DigestMismatch, HmacMismatch                                 the bytes contradict a header
    ├── Overloaded, Draining                                         this replica cannot serve now
    └── StorageUnavailable                                           S3 failed

    ClientGone                                                       the client disconnected
    SettingsError, ListenError, BucketError                          for the command line
"""

from collections.abc import Sequence
from typing import ClassVar


class HistoryError(Exception):
    """An error that is reported to the client.

    `code` never changes. `detail` is one sentence that says what to do. It is sent to the client
    unchanged, so it must not contain internal causes: chain those with `from`.
    """

    code: ClassVar[str]
    default_detail: ClassVar[str]

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail if detail is not None else self.default_detail
        super().__init__(self.detail)


class MissingHeader(HistoryError):
    """A proof header is absent or empty."""

    code = "missing_header"

    def __init__(self, name: str) -> None:
        super().__init__(f"The {name} header is missing or empty: send the request again with it.")


class MalformedHeader(HistoryError):
    """A header does not have the format that the API defines."""

    code = "malformed_header"


class MalformedForm(HistoryError):
    """A multipart/form-data body does not contain exactly one bundle."""

    code = "malformed_form"


class EmptyBundle(HistoryError):
    """The upload has no bytes. This usually means that the client lost the stream it sent."""

    code = "empty_bundle"
    default_detail = "The upload is empty: send the bundle's bytes in the request body."


class InvalidHmac(HistoryError):
    """X-HMAC is not the bundle's HMAC under this signing key, or not the HMAC stored with it."""

    code = "invalid_hmac"
    default_detail = (
        "The proof does not match this bundle: check that X-HMAC is the bundle's HMAC-SHA256, "
        "computed with the key in X-SIGNING-KEY."
    )


class LimitReached(HistoryError):
    """A limit for a period of time is reached. Try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.retry_after = retry_after


class TooManyAttempts(LimitReached):
    """Too many proofs of this bundle were wrong."""

    code = "too_many_attempts"
    default_detail = (
        "Too many proofs of this bundle were wrong: check X-HMAC and X-SIGNING-KEY, and try again "
        "after the time in Retry-After."
    )


class Unauthorized(HistoryError):
    """The upload has no valid token, and this server needs one."""

    code = "unauthorized"
    default_detail = (
        "This server accepts uploads with a valid token only: send Authorization: Bearer <token>, "
        "or add /t/<token> to the URL of the server."
    )


class TooManyUploads(LimitReached):
    """The caller has too many transfers at a time, or has sent too many bytes."""

    code = "too_many_uploads"
    default_detail = (
        "This token has reached a limit for uploads: try again after the time in Retry-After."
    )


class NotFound(HistoryError):
    """There is no such bundle, or it has expired."""

    code = "not_found"
    default_detail = (
        "There is no bundle with this id, or it has expired: check the id, or ask the sender for "
        "a new upload."
    )


class BundleTooLarge(HistoryError):
    """The declared or received length is over the configured limit."""

    code = "bundle_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The upload is larger than {limit} bytes, the limit of this server: send a "
            "smaller bundle."
        )


class UploadTimeout(HistoryError):
    """The client sent nothing for the read timeout, or was below the minimum average rate."""

    code = "upload_timeout"
    default_detail = "The upload was too slow and was stopped: send the whole bundle again."


class DigestMismatch(HistoryError):
    """The received bytes do not have the SHA-256 given in `Content-Digest` or `Repr-Digest`."""

    code = "digest_mismatch"
    default_detail = (
        "The uploaded bytes do not match the sha-256 in Content-Digest or Repr-Digest: check the "
        "digest, then upload the bundle again."
    )


class HmacMismatch(HistoryError):
    """The received bytes do not have the HMAC in `X-HMAC` under the signing key of the upload."""

    code = "hmac_mismatch"
    default_detail = (
        "The uploaded bytes do not match X-HMAC under the key in X-SIGNING-KEY: check both "
        "headers, then upload the bundle again."
    )


class PreconditionFailed(HistoryError):
    """`If-Match` names a different version of the bundle."""

    code = "precondition_failed"
    default_detail = (
        "The bundle's ETag does not match If-Match: get the current ETag, and restart a partial "
        "download from the first byte."
    )


class RangeNotSatisfiable(HistoryError):
    """The range contains no byte of the bundle; `size` is the bundle's length in bytes."""

    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The range is outside the bundle, which is {size} bytes long: request a "
            "range inside it."
        )
        self.size = size


class Overloaded(HistoryError):
    """No memory became free within the queue timeout."""

    code = "overloaded"
    default_detail = (
        "The server is busy with other transfers: try again after the time in Retry-After."
    )


class Draining(HistoryError):
    """The process is shutting down and accepts no new work."""

    code = "draining"
    default_detail = (
        "This server is shutting down: try again after the time in Retry-After to reach another "
        "server."
    )


class StorageUnavailable(HistoryError):
    """S3 failed, refused the request, or could not be reached; the bundle may or may not exist."""

    code = "storage_unavailable"
    default_detail = (
        "The server's storage is not available: try again after the time in Retry-After."
    )


class ClientGone(Exception):
    """The client disconnected before its response; the work for it is dropped."""

    code = "client_gone"


class SettingsError(Exception):
    """One or more settings are wrong; each of `mistakes` is a line with the name and the rule."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class ListenError(Exception):
    """The service cannot listen on the configured address; the message says what to do."""


class BucketError(Exception):
    """The bucket cannot be created or configured; the message says what to do."""
