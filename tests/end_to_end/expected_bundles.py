"""What was promised to clients, and what must therefore be in the bucket, may be, and must not be.

- A bundle whose id was told is there and identical, until a delete of it is tried.
- Deleted means gone for ever. A delete that failed leaves the bundle, or does not.
- A bundle that was sent whole by a client that did not get to know its id is there, or is not.
- Everything else is not there.
"""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from botocore.exceptions import ClientError

from tests.support.clients.signing import sign
from tests.support.clients.transfers import Answer, Bundle, Delete, Download, Transfer, Upload
from tests.support.polling import until
from tests.support.services.thread import Service

IMPATIENCE = 5.0
"""Seconds in which what must not be in the bucket has to be gone."""

Weather = Literal["calm", "S3 fails", "the service ends"]

REFUSED = {"other key": 401, "other hmac": 401, "half": 400, "none": 400}


@dataclass
class Ledger:
    """`run` may be called by several threads at the same time, all else when nothing runs."""

    told: dict[str, Bundle] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)  # deletes, by id
    gone: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)  # digests
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def run(self, transfer: Transfer, url: str, weather: Weather) -> None:
        """`AssertionError` where a client sees what it must not see in this weather."""
        if isinstance(transfer, Delete) and transfer.proven == "right":
            self.tried[transfer.bundle_id] += 1
        gone = isinstance(transfer, Download) and transfer.bundle_id in self.gone
        answer = transfer.run(url)
        assert answer.status != 500, answer.text
        assert weather != "calm" or answer.status != 503, answer.text
        if weather != "the service ends" or answer.status:
            self._judge(transfer, answer, calm=weather == "calm")
            assert not (gone and answer.status in (200, 206)), "deleted, but there"
        elif isinstance(transfer, Upload):
            self._note_unheard(transfer, answer)
        name = transfer.method if isinstance(transfer, Download) else type(transfer).__name__
        self.outcomes[f"{name.upper()}, {transfer.manner.kind}", _outcome(answer)] += 1

    def _judge(self, transfer: Transfer, answer: Answer, *, calm: bool) -> None:
        match transfer:
            case Upload():
                self._judge_upload(transfer, answer)
            case Download():
                self._judge_download(transfer, answer, calm=calm)
            case Delete():
                self._judge_delete(transfer, answer)

    def _note_unheard(self, upload: Upload, answer: Answer) -> None:
        if answer.sent_all and upload.honest:
            self.unheard.add(hashlib.sha256(upload.bundle.content).hexdigest())

    def _judge_upload(self, upload: Upload, answer: Answer) -> None:
        manner, bundle = upload.manner, upload.bundle
        if answer.status == 200:
            assert upload.honest
            assert answer.whole
            assert answer.sent_all, "answered before all was there"
            assert str(UUID(answer.text, version=4)) == answer.text
            assert answer.text not in self.told
            self.told[answer.text] = bundle
        elif not manner.listens:
            assert not answer.status
            self._note_unheard(upload, answer)
        elif manner.kind == "half-closes" and not answer.sent_all:
            assert answer.status in (0, 400, 503), answer
        else:
            assert answer.status == 503 or (answer.status == 422 and not upload.honest), answer

    def _judge_download(self, download: Download, answer: Answer, *, calm: bool) -> None:
        assert answer.status != 404 or self.tried[download.bundle_id], "a false 404"
        if answer.status in (200, 206):
            assert download.proven == "right"
            self._compare(download, answer)
            stays = download.manner.kind in ("good", "slow")
            assert answer.whole or not calm or not stays, answer
        elif answer.status == 416:
            assert download.part is not None
            assert download.part[0] >= download.bundle.size
        elif not answer.status:
            # Who reads with nothing more to say looks like one that has left.
            assert download.manner.kind == "half-closes", answer
        elif answer.status not in (404, 503):
            assert answer.status == REFUSED.get(download.proven), answer

    def _compare(self, download: Download, answer: Answer) -> None:
        """What came is the begin of what was wanted, of which the headers tell the size."""
        wanted = download.wanted
        whole_bundle = download.part is None or download.method == "HEAD"
        assert answer.status == (200 if whole_bundle else 206)
        assert int(answer.headers["content-length"]) == len(wanted)
        if download.method == "HEAD":
            assert not answer.body
            return
        assert wanted.startswith(answer.body)
        assert answer.whole == (answer.body == wanted)

    def _judge_delete(self, delete: Delete, answer: Answer) -> None:
        bundle_id = delete.bundle_id
        if answer.status == 204:
            assert delete.proven == "right"
            self.gone.add(bundle_id)
        elif answer.status == 404:
            # Another delete may have had that answer, or have failed after all was done.
            assert self.tried[bundle_id] > (delete.proven == "right"), "a false 404"
            self.gone.add(bundle_id)
        elif answer.status not in (0, 503):
            assert answer.status == REFUSED.get(delete.proven), answer
        elif not answer.status:
            assert delete.manner.kind in ("leaves", "resets", "half-closes"), answer

    def lost(self, service: Service) -> list[str]:
        """Ids of bundles that must be in the bucket, but are not."""
        keys = set(service.objects())
        there = (bundle_id for bundle_id in self.told if not self.tried[bundle_id])
        return [bundle_id for bundle_id in there if f"{service.prefix}{bundle_id}" not in keys]

    def strays(self, service: Service) -> list[str]:
        """Keys, and what else there is of them, that must not be in the bucket."""
        uploads = [f"upload of {key}" for key in service.multipart_uploads()]
        keys = [key for key in service.objects() if not self._belongs(service, key)]
        return uploads + keys

    def _belongs(self, service: Service, key: str) -> bool:
        bundle_id = key.removeprefix(service.prefix)
        if bundle_id in self.told:
            return bundle_id not in self.gone
        content = read(service, key)
        return content is not None and hashlib.sha256(content).hexdigest() in self.unheard

    def sweep(self, service: Service) -> None:
        """Do what the bucket's lifecycle does, sooner."""
        service.abort_all()
        for key in self.strays(service):
            service.s3.delete_object(Bucket=service.bucket, Key=key)

    def settle(self, service: Service) -> float:
        """Wait until the bucket holds no more than it should; the seconds that took."""
        began = time.monotonic()
        strays: list[str] = []

        def none() -> bool:
            strays[:] = self.strays(service)
            return not strays

        try:
            until(none, seconds=IMPATIENCE)
        except AssertionError as error:
            raise AssertionError(f"left in the bucket: {strays}") from error
        return time.monotonic() - began

    def table(self) -> str:
        """Who saw what, how often."""
        lines = [
            f"{count:6} {who:22} {what}" for (who, what), count in sorted(self.outcomes.items())
        ]
        return "\n".join([f"{self.outcomes.total():6} transfers", *lines])

    def check(self, service: Service) -> None:
        """Everything that was told is as it was promised, in the bucket and for clients."""
        for bundle_id, bundle in self.told.items():
            stored = read(service, f"{service.prefix}{bundle_id}")
            answer = service.fetch(bundle_id, sign(bundle.key, bundle.content))
            if bundle_id in self.gone or (self.tried[bundle_id] and stored is None):
                assert stored is None, "it is back"
                assert answer.status_code == 404
                self.gone.add(bundle_id)
                continue
            assert stored is not None, f"{bundle_id} was told, and is lost"
            assert stored == bundle.content
            assert answer.status_code == 200
            assert answer.content == bundle.content


def _outcome(answer: Answer) -> str:
    if not answer.status:
        return "no answer"
    code = ""
    if answer.headers.get("content-type") == "application/problem+json" and answer.whole:
        code = answer.text.partition('"code": "')[2].partition('"')[0]
    return f"{answer.status} {code}".strip() + ("" if answer.whole else ", cut")


def read(service: Service, key: str) -> bytes | None:
    """Past the service; `None` where there is no such object."""
    try:
        got: Any = service.s3.get_object(Bucket=service.bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
    with got["Body"] as body:
        content: bytes = body.read()
    return content
