"""Transfers use the memory again that transfers before them have freed.

The kernel clears every page that a process gets, so returning memory to it and getting it back
takes a tenth of the CPU time of a transfer. The test counts pages, not time.
"""

import ctypes
import re
import resource
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.clients.signing import sign
from tests.support.services.process import service_process_for
from tests.support.stores import Store
from tests.support.stores.buckets import new_bucket

KEY = "the signing key of a bundle that takes many pages"
BUNDLE = bytes(12 << 20)
PAGES = len(BUNDLE) // resource.getpagesize()
ROUNDS = 10


def page_faults(pid: int) -> int:
    """Return how many pages a process has got from the kernel so far (proc_pid_stat(5), minflt)."""
    return int(re.sub(r".*\)", "", Path(f"/proc/{pid}/stat").read_text()).split()[7])


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt: use glibc"
)
def test_transfers_need_few_new_pages(store: Store, s3: Any) -> None:
    """Measured: 0.2 % of the pages of the bundles, and without mallopt 85 to 96 %."""
    with (
        service_process_for(store, new_bucket(s3)) as (url, process),
        closing(HTTPConnection(urlsplit(url).netloc)) as connection,
    ):

        def transfer() -> None:
            connection.request("POST", "/upload", BUNDLE, sign(KEY, BUNDLE))
            bundle_id = connection.getresponse().read().decode()
            connection.request("GET", f"/files/{bundle_id}", headers=sign(KEY, BUNDLE))
            assert connection.getresponse().read() == BUNDLE

        for _ in range(3):
            transfer()
        before = page_faults(process.pid)
        for _ in range(ROUNDS):
            transfer()
        new_pages = page_faults(process.pid) - before
    print(f"{new_pages / ROUNDS / PAGES:.3f} of the bundle's pages for each upload and download")
    assert new_pages < ROUNDS * PAGES / 4
