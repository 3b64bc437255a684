"""The benchmark still works: a small run of it measures and draws."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import uvloop

from tests.bench import __main__ as bench
from tests.bench import report
from tests.bench.workloads import Workload
from tests.support.marks import only_ci
from tests.support.stores import Store

ROUNDS = 1


@only_ci
def test_all_variants_are_compared_and_drawn_with_a_far_store(store: Store) -> None:
    """The chunked upload has more than one part, so the service makes several calls for it."""
    workloads = [
        Workload("upload", 9 << 20, 1, max_transfers=1),
        Workload("upload chunked", 9 << 20, 1, max_transfers=1),
        Workload("first download", 4096, 1, max_transfers=1),
        Workload("range", 4096, 2, max_transfers=1),
    ]
    with bench.deploy(store, bench.DELAY) as deployment:
        results = uvloop.run(bench.compare_variants("far", workloads, deployment, ROUNDS))
    s3_requests = [result["s3_requests"] for result in results]
    assert s3_requests == [1, 5, 3, 3]
    for result in results:
        assert result["ways"]["through"]["p50"] > bench.DELAY * 1000
        assert all(ratio["low"] > 0 for ratio in result["ratio"].values())
        assert result["time_to_bare_call"]["median"] > 0
        assert result["service_cpu"]["ms_per_transfer"] > 0
        assert result["work"] in report.table_row("far", result)
    svg = ET.fromstring(report.render_svg({"far": results}))
    for css_class in ("through", "same", "relayed"):
        marks = svg.findall(f"{{*}}circle[@class='{css_class}']")
        drawn = [workload for workload in workloads if workload.kind in report.SVG_KINDS]
        assert len(marks) == len(drawn) + 1, "one in each row, and one in the legend"
    assert len(svg.findall("{*}line[@class='goal']")) == 2 + 1


@only_ci
def test_scaling_and_memory_are_measured(store: Store) -> None:
    workload = Workload("download", 1 << 20, 2, max_transfers=1)
    with bench.deploy(store, 0, replicas=2) as deployment:
        memory = uvloop.run(bench.measure_memory(deployment, uploads=2, size=6 << 20))
        [scaling] = uvloop.run(bench.measure_scaling(deployment, ROUNDS, workloads=[workload]))
    assert memory["before_mib"] < memory["peak_mib"] < memory["before_mib"] + 64
    assert list(scaling["mib_per_s"]) == [1, 2]
    assert all(scaling["mib_per_s"].values())


def test_stored_svg_shows_the_stored_results() -> None:
    """A change of how the SVG is drawn has to include a new results.svg."""
    folder = Path(bench.__file__).parent
    svg = report.render_svg(json.loads((folder / "results.json").read_text()))
    assert (folder / "results.svg").read_text() == svg, "run `make bench`"
