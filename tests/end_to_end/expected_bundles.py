"""The bundles that must, may and must not be in the bucket, after the responses that clients got.

- A bundle whose id a client received exists unchanged until a client tries to delete it.
- A deleted bundle never comes back. After a failed delete, the bundle may or may not exist.
- If a client sent a whole bundle but did not receive its id, the bundle may or may not exist.
- Nothing else exists.

After several failed reads of a bundle, clients get 429, even with the right proof.
"""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from botocore.exceptions import ClientError

from service.bundles.limits import MAX_FAILURES
from tests.support.clients.signing import sign
from tests.support.clients.transfers import Bundle, Delete, Download, Response, Transfer, Upload
from tests.support.polling import wait_until
from tests.support.services.thread import Service

CLEANUP_TIMEOUT = 5.0
"""Seconds within which the service removes everything that must not be in the bucket."""

Conditions = Literal["normal", "S3 fails", "the service stops"]

REFUSAL_STATUS = {"other key": 401, "other hmac": 401, "half": 400, "none": 400}


@dataclass
class ExpectedBundles:
    """Records responses, and knows from them which bundles must exist.

    Several threads may call `run` at once. Call the other methods only while no transfer runs.
    """

    uploaded: dict[str, Bundle] = field(default_factory=dict)
    delete_attempts: Counter[str] = field(default_factory=Counter)  # by id
    read_failures: Counter[str] = field(default_factory=Counter)  # by id, at most so many
    deleted: set[str] = field(default_factory=set)
    unconfirmed: set[str] = field(default_factory=set)  # SHA-256 of bundles without a known id
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def run(self, transfer: Transfer, url: str, conditions: Conditions) -> None:
        """Run a transfer. Fails if the client gets a response that is wrong in these conditions."""
        if isinstance(transfer, Delete) and transfer.proof == "right":
            self.delete_attempts[transfer.bundle_id] += 1
        if not isinstance(transfer, Upload) and may_fail_a_read(transfer):
            self.read_failures[transfer.bundle_id] += 1
        was_deleted = isinstance(transfer, Download) and transfer.bundle_id in self.deleted
        response = transfer.run(url)
        assert response.status != 500, response.text
        assert conditions != "normal" or response.status != 503, response.text
        if conditions != "the service stops" or response.status:
            self._check_response(transfer, response, normal=conditions == "normal")
            assert not (was_deleted and response.status in (200, 206)), (
                "a deleted bundle was served"
            )
        elif isinstance(transfer, Upload):
            self._record_unconfirmed(transfer, response)
        name = transfer.method if isinstance(transfer, Download) else type(transfer).__name__
        self.outcomes[f"{name.upper()}, {transfer.behaviour.kind}", _outcome(response)] += 1

    def _check_response(self, transfer: Transfer, response: Response, *, normal: bool) -> None:
        match transfer:
            case Upload():
                self._check_upload(transfer, response)
            case Download():
                self._check_download(transfer, response, normal=normal)
            case Delete():
                self._check_delete(transfer, response)

    def _record_unconfirmed(self, upload: Upload, response: Response) -> None:
        if response.sent_all and upload.has_true_claims:
            self.unconfirmed.add(hashlib.sha256(upload.bundle.content).hexdigest())

    def _check_upload(self, upload: Upload, response: Response) -> None:
        manner, bundle = upload.behaviour, upload.bundle
        if response.status == 200:
            assert upload.has_true_claims
            assert response.complete
            assert response.sent_all, "the response came before the end of the upload"
            assert str(UUID(response.text, version=4)) == response.text
            assert response.text not in self.uploaded
            self.uploaded[response.text] = bundle
        elif not manner.reads_response:
            assert not response.status
            self._record_unconfirmed(upload, response)
        elif manner.kind == "half-closes" and not response.sent_all:
            assert response.status in (0, 400, 503), response
        else:
            assert response.status == 503 or (
                response.status == 422 and not upload.has_true_claims
            ), response

    def _check_download(self, download: Download, response: Response, *, normal: bool) -> None:
        assert response.status != 404 or self.delete_attempts[download.bundle_id], (
            "a bundle that must exist got 404"
        )
        if response.status in (200, 206):
            assert download.proof == "right"
            self._check_content(download, response)
            reads_all = download.behaviour.kind in ("good", "slow")
            assert response.complete or not normal or not reads_all, response
        elif response.status == 416:
            assert download.byte_range is not None
            assert download.byte_range[0] >= download.bundle.size
        elif not response.status:
            # To the service, a half-closed connection looks like a client that disconnected.
            assert download.behaviour.kind == "half-closes", response
        elif response.status == 429:
            assert self.read_failures[download.bundle_id] >= MAX_FAILURES
        elif response.status not in (404, 503):
            assert response.status == REFUSAL_STATUS.get(download.proof), response

    def _check_content(self, download: Download, response: Response) -> None:
        """Check the size in the headers, and that the body is the start of the expected bytes."""
        expected = download.expected_body
        whole_bundle = download.byte_range is None or download.method == "HEAD"
        assert response.status == (200 if whole_bundle else 206)
        assert int(response.headers["content-length"]) == len(expected)
        if download.method == "HEAD":
            assert not response.body
            return
        assert expected.startswith(response.body)
        assert response.complete == (response.body == expected)

    def _check_delete(self, delete: Delete, response: Response) -> None:
        bundle_id = delete.bundle_id
        if response.status == 204:
            assert delete.proof == "right"
            self.deleted.add(bundle_id)
        elif response.status == 404:
            # Another delete may have succeeded, or removed the bundle before it failed.
            assert self.delete_attempts[bundle_id] > (delete.proof == "right"), (
                "a bundle that must exist got 404"
            )
            self.deleted.add(bundle_id)
        elif response.status == 429:
            assert self.read_failures[bundle_id] >= MAX_FAILURES
        elif response.status not in (0, 503):
            assert response.status == REFUSAL_STATUS.get(delete.proof), response
        elif not response.status:
            assert delete.behaviour.kind in ("leaves", "resets", "half-closes"), response

    def missing(self, service: Service) -> list[str]:
        """Return the ids of bundles that must be in the bucket, but are not."""
        keys = set(service.objects())
        required = (bundle_id for bundle_id in self.uploaded if not self.delete_attempts[bundle_id])
        return [bundle_id for bundle_id in required if f"{service.prefix}{bundle_id}" not in keys]

    def unexpected(self, service: Service) -> list[str]:
        """Return the objects and the multipart uploads that must not be in the bucket."""
        uploads = [f"multipart upload of {key}" for key in service.multipart_uploads()]
        keys = [key for key in service.objects() if not self._may_exist(service, key)]
        return uploads + keys

    def _may_exist(self, service: Service, key: str) -> bool:
        bundle_id = key.removeprefix(service.prefix)
        if bundle_id in self.uploaded:
            return bundle_id not in self.deleted
        content = read(service, key)
        return content is not None and hashlib.sha256(content).hexdigest() in self.unconfirmed

    def run_lifecycle(self, service: Service) -> None:
        """Remove at once what the bucket's lifecycle would remove later."""
        service.abort_multipart_uploads()
        for key in self.unexpected(service):
            service.s3.delete_object(Bucket=service.bucket, Key=key)

    def wait_for_cleanup(self, service: Service) -> float:
        """Wait until the bucket holds nothing unexpected. Returns the seconds that this took."""
        started = time.monotonic()
        unexpected: list[str] = []

        def clean() -> bool:
            unexpected[:] = self.unexpected(service)
            return not unexpected

        try:
            wait_until(clean, timeout=CLEANUP_TIMEOUT)
        except AssertionError as error:
            raise AssertionError(f"left in the bucket: {unexpected}") from error
        return time.monotonic() - started

    def summary(self) -> str:
        """Return how often each kind of client got each outcome."""
        lines = [
            f"{count:6} {client:22} {outcome}"
            for (client, outcome), count in sorted(self.outcomes.items())
        ]
        return "\n".join([f"{self.outcomes.total():6} transfers", *lines])

    def check(self, service: Service) -> None:
        """Check every uploaded bundle, in the bucket and through the service."""
        for bundle_id, bundle in self.uploaded.items():
            stored = read(service, f"{service.prefix}{bundle_id}")
            response = service.fetch(bundle_id, sign(bundle.key, bundle.content))
            if bundle_id in self.deleted or (self.delete_attempts[bundle_id] and stored is None):
                assert stored is None, "a deleted bundle is back"
                assert response.status_code == 404
                self.deleted.add(bundle_id)
                continue
            assert stored is not None, f"{bundle_id} was uploaded, but does not exist"
            assert stored == bundle.content
            if response.status_code == 429:
                assert self.read_failures[bundle_id] >= MAX_FAILURES
                continue
            assert response.status_code == 200
            assert response.content == bundle.content


def may_fail_a_read(transfer: Download | Delete) -> bool:
    """Return whether the service may read the bundle for a wrong proof, or for a client that goes.

    If the bundle has no stored HMAC, that also holds for a wrong HMAC.
    """
    leaves = transfer.behaviour.kind in ("leaves", "resets", "half-closes")
    return transfer.proof in ("other key", "other hmac") or (leaves and transfer.proof == "right")


def _outcome(response: Response) -> str:
    if not response.status:
        return "no response"
    code = ""
    if response.headers.get("content-type") == "application/problem+json" and response.complete:
        code = response.text.partition('"code": "')[2].partition('"')[0]
    return f"{response.status} {code}".strip() + ("" if response.complete else ", incomplete")


def read(service: Service, key: str) -> bytes | None:
    """Read an object from S3 directly. Returns `None` if it does not exist."""
    try:
        response: Any = service.s3.get_object(Bucket=service.bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
    with response["Body"] as body:
        content: bytes = body.read()
    return content
