"""The benchmark, in small: that it still measures, and draws."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import uvloop

from tests.bench import __main__ as bench
from tests.bench import report
from tests.bench.work import Work
from tests.support.marks import only_ci
from tests.support.stores import Store

ROUNDS = 1


@only_ci
def test_a_far_store_is_compared_on_every_way_and_drawn(store: Store) -> None:
    """With a part more than one, so that the service makes several calls for a transfer."""
    works = [
        Work("upload", 9 << 20, 1, most=1),
        Work("first download", 4096, 1, most=1),
        Work("range", 4096, 2, most=1),
    ]
    with bench.setup(store, bench.DELAY) as at:
        results = uvloop.run(bench.compare(works, at, ROUNDS))
    calls = [result["s3_requests"] for result in results]
    assert calls == [5, 3, 3]
    for result in results:
        assert result["ways"]["through"]["p50"] > bench.DELAY * 1000
        assert all(ratio["low"] > 0 for ratio in result["ratio"].values())
        assert result["service_cpu"]["ms_per_transfer"] > 0
        assert result["work"] in report.line(result)
    drawn = ET.fromstring(report.picture({"far": results}))
    for way in ("through", "same", "relayed"):
        marks = drawn.findall(f"{{*}}circle[@class='{way}']")
        assert len(marks) == len(works[:2]) + 1, "one a row, and one that says what it is"


@only_ci
def test_replicas_and_memory_are_measured(store: Store) -> None:
    with bench.setup(store, 0, count=2) as at:
        crowd = uvloop.run(bench.crowd(at, uploads=2, size=6 << 20))
        [result] = uvloop.run(bench.scale(at, ROUNDS, works=[Work("download", 4096, 2, most=1)]))
    assert crowd["before_mib"] < crowd["peak_mib"] < crowd["before_mib"] + 64
    assert list(result["mib_per_s"]) == [1, 2]
    assert all(result["mib_per_s"].values())


def test_the_picture_is_of_the_results() -> None:
    """Both are kept; who changes how it is drawn draws it anew."""
    kept = Path(bench.__file__).parent
    drawn = report.picture(json.loads((kept / "results.json").read_text()))
    assert (kept / "results.svg").read_text() == drawn, "run `make bench`"
