"""infra/README.md matches the templates and the requests of the service."""

import hmac
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.infra.cloudformation.templates import TEMPLATES, Template
from tests.support.polling import wait_until
from tests.support.repository import ROOT
from tests.support.services.thread import SMALL_PART, Service, StartService

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


def test_documented_request_counts_match_the_requests_sent(start_service: StartService) -> None:
    """Count requests for a bundle in one part and for one in two; the README's has 13 parts."""
    rows = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \| \$([\d.]+) \|$", README, flags=re.MULTILINE)
    for _, puts, gets, dollars in rows:
        assert float(dollars) == pytest.approx(5 * int(puts) + 0.4 * int(gets))
    documented = {operation: (int(puts), int(gets)) for operation, puts, gets, _ in rows}
    service = start_service(part_size=SMALL_PART, memory_budget=2 * SMALL_PART)
    key, small, large = "k" * 32, b"a bundle", bytes(SMALL_PART + 1)
    proofs = {
        body: {"X-SIGNING-KEY": key, "X-HMAC": hmac.digest(key.encode(), body, "sha256").hex()}
        for body in (small, large)
    }

    def check_requests(operation: str, action: Callable[[], Any], *, parts: int = 13) -> Any:
        """Check how many requests an action makes, in the foreground and in the background."""
        puts_before, gets_before = _requests_sent(service)
        result = action()
        puts, gets = documented[operation]
        expected = (puts_before + puts - 13 + parts, gets_before + gets)
        wait_until(lambda: _requests_sent(service)[0] >= expected[0])
        assert _requests_sent(service) == expected, operation
        return result

    def upload(bundle: bytes, *, chunked: bool = False) -> str:
        headers = {"X-HMAC": proofs[bundle]["X-HMAC"]}
        content = iter([bundle]) if chunked else bundle
        return service.http.post("/upload", content=content, headers=headers).text

    known, unknown = "upload with `Content-Length`", "upload of unknown length, or form"
    check_requests(f"{unknown}, of up to 8 MiB", lambda: upload(small, chunked=True))
    check_requests(
        f"{unknown}, of 100 MiB, in 13 parts", lambda: upload(large, chunked=True), parts=2
    )
    bundle_id = check_requests(f"{known}, of up to 5 GiB", lambda: upload(large))
    check_requests(
        "first download of a bundle that does not fit in the free memory",
        lambda: service.fetch(bundle_id, proofs[large]),
    )
    bundle_id = check_requests(f"{known}, of up to 5 GiB", lambda: upload(small))
    check_requests("first download", lambda: service.fetch(bundle_id, proofs[small]))
    check_requests("later download", lambda: service.fetch(bundle_id, proofs[small]))
    part = {**proofs[small], "Range": "bytes=0-1"}
    ranged = "later download of a range, or with `If-Match`"
    check_requests(ranged, lambda: service.fetch(bundle_id, part))
    path = f"/files/{bundle_id}"
    check_requests("`DELETE`", lambda: service.http.delete(path, headers=proofs[small]))


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
