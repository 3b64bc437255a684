"""infra/README.md matches the templates and the requests of the service."""

import hmac
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.infra.cloudformation.templates import TEMPLATES, Template
from tests.support.repository import ROOT
from tests.support.services.thread import SMALL_PART, Service

README = (ROOT / "infra" / "README.md").read_text()


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_parameter_is_documented(name: str) -> None:
    _, _, table = README.partition(f"| parameter of {name}.yaml |")
    table, _, _ = table.partition("\n\n")
    documented = dict(re.findall(r"^\| `(\w+)` \| (?:`?([^`|]*)`? )?\|", table, flags=re.MULTILINE))
    defaults = {
        parameter: str(declared.get("Default", "needed"))
        for parameter, declared in Template(name).source["Parameters"].items()
    }
    assert documented == defaults


def test_every_size_is_documented() -> None:
    for name, size in Template("service").source["Mappings"]["Sizes"].items():
        budget = size["Budget"].removesuffix("MiB")
        budget = f"{budget} MiB" if int(budget) < 1024 else f"{int(budget) // 1024} GiB"
        line = f"| `{name}` | {size['Cpu'] / 1024:g} | {size['Memory'] // 1024} GiB | {budget} |"
        assert line in README


def test_documented_request_counts_match_the_requests_sent(service: Service) -> None:
    """Count requests for a bundle in one part and for one in two; the README's has 13 parts."""
    rows = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \| \$([\d.]+) \|$", README, flags=re.MULTILINE)
    for _, puts, gets, dollars in rows:
        assert float(dollars) == pytest.approx(5 * int(puts) + 0.4 * int(gets))
    documented = {operation: (int(puts), int(gets)) for operation, puts, gets, _ in rows}
    key, small, large = "k" * 32, b"a bundle", bytes(SMALL_PART + 1)
    proofs = {
        body: {"X-SIGNING-KEY": key, "X-HMAC": hmac.digest(key.encode(), body, "sha256").hex()}
        for body in (small, large)
    }

    def count_requests(action: Callable[[], Any]) -> tuple[tuple[int, int], Any]:
        before = _requests_sent(service)
        result = action()
        after = _requests_sent(service)
        return (after[0] - before[0], after[1] - before[1]), result

    upload, bundle_id = count_requests(lambda: service.upload(small, proofs[small]["X-HMAC"]))
    assert upload == documented["upload of up to 8 MiB"]
    first, _ = count_requests(lambda: service.fetch(bundle_id, proofs[small]))
    assert first == documented["first download"]
    later, _ = count_requests(lambda: service.fetch(bundle_id, proofs[small]))
    assert later == documented["later download"]
    path = f"/files/{bundle_id}"
    delete, _ = count_requests(lambda: service.http.delete(path, headers=proofs[small]))
    assert delete == documented["`DELETE`"]
    upload, bundle_id = count_requests(lambda: service.upload(large, proofs[large]["X-HMAC"]))
    puts, gets = documented["upload of 100 MiB, in 13 parts"]
    assert upload == (puts - 13 + 2, gets)
    first, _ = count_requests(lambda: service.fetch(bundle_id, proofs[large]))
    assert first == documented["first download of more than 8 MiB"]


def _requests_sent(service: Service) -> tuple[int, int]:
    """Return how many S3 requests so far cost as much as a PUT, and as much as a GET.

    Readiness checks are not counted.
    """
    counts = re.findall(
        r'history_s3_request_seconds_count\{operation="(\w+)",outcome="\w+"\} (\S+)',
        service.http.get("/metrics").text,
    )
    gets = sum(int(float(count)) for name, count in counts if re.match("Get|HeadObject", name))
    free = re.compile("Delete|Abort|HeadBucket|Get|HeadObject")
    puts = sum(int(float(count)) for name, count in counts if not free.match(name))
    return puts, gets
