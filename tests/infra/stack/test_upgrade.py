"""Replicas of two versions serve one bucket, as they do while a new version is rolled out.

The earlier version is the newest release before this commit. Before the first release, it is the
first parent of this commit: after a merge, what the main branch was before. In a clone without
history, it is this commit. `UPGRADE_FROM` can name another revision. The earlier version runs with
the packages that are installed now.
"""

import io
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.support.clients import random_transfers
from tests.support.clients.transfers import (
    Bundle,
    Claims,
    Delete,
    Download,
    Framing,
    Response,
    Transfer,
    Upload,
)
from tests.support.repository import ROOT
from tests.support.services.metrics import metric_total
from tests.support.services.replicas import Replica
from tests.support.services.thread import SMALL_PART
from tests.support.stores import Store, free_ports
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket

FRAMINGS: tuple[Framing, ...] = ("length", "chunked", "form")
CLAIMS: tuple[Claims, ...] = ("nothing", "hmac", "key", "digest")
UPLOADS = [pair for pair in product(FRAMINGS, CLAIMS) if pair != ("form", "digest")]
"""Every kind of upload. The service refuses a form with a digest."""


def earlier_revision() -> str:
    """Return the revision of the earlier version. Without a git repository, skip the test."""
    if chosen := os.environ.get("UPGRADE_FROM"):
        return chosen
    newest_release = ["git", "describe", "--tags", "--abbrev=0", "--match=v[0-9]*", "HEAD^"]
    parent, this = (["git", "rev-parse", "--verify", commit] for commit in ("HEAD^", "HEAD"))
    if (ROOT / ".git").exists():
        for command in (newest_release, parent, this):
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return result.stdout.strip()
    pytest.skip("there is no earlier version, because this is not a git repository")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the service of the earlier version."""
    revision = earlier_revision()
    print(f"\nthe earlier version is {revision}")
    folder = tmp_path_factory.mktemp("earlier")
    archive = ["git", "archive", "--format=zip", revision, "service"]
    content = subprocess.run(archive, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        files.extractall(folder)
    # The current version is installed in this environment, but the folder comes first.
    path = [sys.executable, "-c", "import service; print(service.__path__[0])"]
    imported = subprocess.run(path, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert imported.strip() == str(folder / "service")
    return folder


@contextmanager
def running_replicas(store: Store, s3: Any, log: Path, *folders: Path) -> Iterator[list[Replica]]:
    """Run a replica from each of these folders, with the same bucket."""
    with aws_environment(store) as variables, log.open("wb") as output:
        environment = {
            **variables,
            "HISTORY_BUCKET": new_bucket(s3),
            "HISTORY_RECORDS": store.records,
            "HISTORY_PART_SIZE": f"{SMALL_PART}B",
            "HISTORY_LOG_FORMAT": "json",
            "HISTORY_LOG_LEVEL": "warning",
        }
        replicas = [
            Replica(f"the replica in {folder}", port, environment, output, folder)
            for folder, port in zip(folders, free_ports(len(folders)), strict=True)
        ]
        try:
            for replica in replicas:
                replica.start()
            for replica in replicas:
                replica.wait_until_ready()
            yield replicas
        finally:
            for replica in replicas:
                replica.kill()


@dataclass
class LoadBalancer:
    """Sends each transfer to the replica that the test chooses, and counts the transfers."""

    rng: Random
    bundles: dict[str, Bundle] = field(default_factory=dict)
    """The bundles that were uploaded and not deleted, by id."""
    transfers: Counter[str] = field(default_factory=Counter)

    def send(self, url: str, transfer: Transfer, status: int) -> Response:
        response = transfer.run(url)
        assert response.status == status, f"{transfer}: {response.text}"
        assert response.complete
        self.transfers[type(transfer).__name__] += 1
        if isinstance(transfer, Download) and status in (200, 206):
            expected = transfer.expected_body
            assert int(response.headers["content-length"]) == len(expected)
            assert response.body == (b"" if transfer.method == "HEAD" else expected)
        return response

    def use_bundle(self, upload: Upload, uploader: str, other: str) -> None:
        """Upload a bundle to one replica, and use it through the other one and then both.

        The first of the downloads reads the bundle to check its proof, the later ones its receipt.
        """
        bundle = upload.bundle
        response = self.send(uploader, upload, 200)
        bundle_id, expiry = response.text, response.headers["sunset"]
        first = self.rng.randrange(bundle.size)
        downloads = [
            Download(bundle_id, bundle),
            Download(bundle_id, bundle, method="HEAD"),
            Download(bundle_id, bundle, byte_range=(first, self.rng.randrange(first, bundle.size))),
        ]
        self.rng.shuffle(downloads)
        for download in downloads:
            is_part = download.byte_range is not None
            response = self.send(other, download, 206 if is_part else 200)
            assert response.headers["sunset"] == expiry
            assert ("repr-digest" in response.headers) == (upload.claims == "digest")
        self.send(uploader, downloads[-1], response.status)
        self.send(other, Download(bundle_id, bundle, proof="other key"), 401)
        if self.rng.random() < 0.5:
            self.send(other, Delete(bundle_id, bundle), 204)
            self.send(uploader, Download(bundle_id, bundle), 404)
        else:
            self.bundles[bundle_id] = bundle


@pytest.mark.both_records
@pytest.mark.parametrize("rounds", [1, pytest.param(14, marks=pytest.mark.soak)])
def test_two_versions_serve_the_bundles_of_each_other(
    store: Store, s3: Any, earlier: Path, tmp_path: Path, rounds: int
) -> None:
    """In each round, both versions get every kind of upload. The other version serves it."""
    rng = Random(random_transfers.seed(soak=rounds > 1))
    balancer, log = LoadBalancer(rng), tmp_path / "log"
    with running_replicas(store, s3, log, earlier, ROOT) as replicas:
        urls = [replica.url for replica in replicas]
        for uploader, other in rounds * [urls, urls[::-1]]:
            in_parts = rng.sample(UPLOADS, 3)
            for kind in UPLOADS:
                size = rng.randrange(1, 20_000) + (SMALL_PART if kind in in_parts else 0)
                bundle = Bundle(rng.getrandbits(32), size)
                balancer.use_bundle(Upload(bundle, *kind), uploader, other)
        for bundle_id, bundle in balancer.bundles.items():
            for url in urls:
                balancer.send(url, Download(bundle_id, bundle), 200)
        page = httpx.get(f"{urls[1]}/metrics", trust_env=False).text
    print(f"\n{dict(balancer.transfers)}, {len(balancer.bundles)} bundles remain")
    assert balancer.transfers.total() == rounds * 2 * len(UPLOADS) * 8
    assert '"level": "error"' not in log.read_text()
    # This version used receipts. In metadata, only uploads with a key store one.
    assert metric_total(page, r'verifications_total\{outcome="held",way="receipt"\}') > 0
