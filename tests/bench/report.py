"""What a benchmark found, for people: lines of a table, and a picture."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLUMNS = (
    f"{'':28} {'of one call':>17} {'of the same calls':>17} {'MiB/s':>8} {'p50 ms':>8} "
    f"{'p99 ms':>8} {'1st byte':>8} {'CPU ms':>7} {'s/GiB':>8} {'x bare':>6} {'calls':>5}"
)
TITLES = {
    "near": "Store and client on the same machine; throughput as a ratio to that without a service",
    "far": "The same with 20 ms to the store",
}


def title(part: str) -> str:
    return f"\n{TITLES[part]}\n{COLUMNS}"


def line(result: Mapping[str, Any]) -> str:
    way, cpu = result["ways"]["through"], result["service_cpu"]
    return (
        f"{result['work']:28} {_ratio(result['ratio']['direct']):>17} "
        f"{_ratio(result['ratio']['same calls']):>17} {way['mib_per_s']:8.1f} {way['p50']:8.1f} "
        f"{way['p99']:8.1f} {way['first_byte']:8.1f} {cpu['ms_per_transfer']:7.2f} "
        f"{cpu['s_per_gib']:8.2f} {cpu['to_bare_call']['median']:6.2f} {result['s3_requests']:5.2f}"
    )


def _ratio(it: Mapping[str, float]) -> str:
    return f"{it['median']:.2f} ({it['low']:.2f}–{it['high']:.2f})"


def scaling(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["\nReplicas, with 20 ms to the store: MiB/s"]
    for result in results:
        speeds = "   ".join(f"{count}: {it}" for count, it in result["mib_per_s"].items())
        lines.append(f"{result['work']:28} {speeds}")
    return "\n".join(lines)


def memory(result: Mapping[str, Any]) -> str:
    return (
        f"\n64 uploads of 100 MiB at once: {result['peak_mib']} MiB resident at most "
        f"({result['before_mib']} before), {result['refused']} told to come again"
    )


ROW, LEFT, WIDTH = 22, 190, 420
"""Pixels: the height of a row, where the scale begins, and from 0 to 1 on it."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.dim { fill: #59636e }
.axis { stroke: #d1d9e0 }
.one { stroke: #59636e; stroke-dasharray: 3 3 }
.spread { stroke: #0969da; stroke-opacity: .35; stroke-width: 6; stroke-linecap: round }
.direct { fill: #0969da }
.same { fill: none; stroke: #bc4c00; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .dim { fill: #9198a1 } .axis { stroke: #3d444d }
  .one { stroke: #9198a1 } .spread { stroke: #4493f8 } .direct { fill: #4493f8 }
  .same { stroke: #f0883e }
}
"""


def picture(found: Mapping[str, Any]) -> str:
    """Throughput of transfers, 16 at a time and one at a time to a far store, as an SVG."""
    rows: list[str] = []
    y = 34
    for part, at_a_time, words in (
        ("near", 16, "16 at a time, store on the same machine"),
        ("far", 1, "one at a time, 20 ms to the store"),
    ):
        chosen = [it for it in found.get(part, []) if it["at_a_time"] == at_a_time]
        if chosen:
            rows.append(f'<text class="title" x="8" y="{y + 4}">{words}</text>')
            y += ROW
        for result in chosen:
            rows += _row(result, y)
            y += ROW
        y += ROW // 2
    grid = [
        f'<line class="{"one" if tick == 10 else "axis"}" x1="{_x(tick / 10)}" y1="20" '
        f'x2="{_x(tick / 10)}" y2="{y - 16}"/>'
        f'<text class="dim" x="{_x(tick / 10)}" y="14" text-anchor="middle">{tick / 10:g}</text>'
        for tick in (0, 2, 4, 6, 8, 10, 12)
    ]
    legend = (
        f'<circle class="direct" cx="{LEFT}" cy="{y}" r="5"/>'
        f'<text x="{LEFT + 10}" y="{y + 4}">of one PutObject or GetObject</text>'
        f'<circle class="same" cx="{LEFT + 200}" cy="{y}" r="5"/>'
        f'<text x="{LEFT + 210}" y="{y + 4}">of the same S3 calls; 1 is as fast as S3</text>'
    )
    body = "\n".join([f"<style>{STYLE}</style>", *grid, *rows, legend])
    width, height = _x(1.2) + 30, y + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="Throughput through the service as a ratio to S3 itself">\n{body}\n</svg>\n'
    )


def _row(result: Mapping[str, Any], y: int) -> list[str]:
    direct, same = result["ratio"]["direct"], result["ratio"]["same calls"]
    name = result["work"].rpartition(" x")[0]
    low, high = _x(direct["low"]), _x(direct["high"])
    return [
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>',
        f'<line class="spread" x1="{low}" y1="{y}" x2="{high}" y2="{y}"/>',
        f'<circle class="direct" cx="{_x(direct["median"])}" cy="{y}" r="5"/>',
        f'<circle class="same" cx="{_x(same["median"])}" cy="{y}" r="5"/>',
    ]


def _x(ratio: float) -> int:
    return round(LEFT + min(ratio, 1.3) * WIDTH)
