"""What a benchmark found, for people: lines of a table, and a picture."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLUMNS = (
    f"{'':28} {'of one call':>17} {'of the same calls':>17} {'of these relayed':>17} "
    f"{'MiB/s':>7} {'p50 ms':>7} {'p99 ms':>7} {'1st byte':>8} "
    f"{'CPU ms':>7} {'s/GiB':>7} {'x bare':>6} {'calls':>5}"
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
        f"{_ratio(result['ratio']['same calls']):>17} {_ratio(result['ratio']['relayed']):>17} "
        f"{way['mib_per_s']:7.1f} {way['p50']:7.1f} {way['p99']:7.1f} {way['first_byte']:8.1f} "
        f"{cpu['ms_per_transfer']:7.2f} {cpu['s_per_gib']:7.2f} "
        f"{cpu['to_bare_call']['median']:6.2f} {result['s3_requests']:5.2f}"
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


DRAWN = ("upload", "first download", "download")

ROW, LEFT, WIDTH = 22, 190, 420
"""Pixels: the height of a row, where the scale begins, and from 0 to 1 on it."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.dim { fill: #59636e }
.axis { stroke: #d1d9e0 }
.one { stroke: #59636e; stroke-dasharray: 3 3 }
.spread { stroke: #0969da; stroke-opacity: .35; stroke-width: 6; stroke-linecap: round }
.through { fill: #0969da }
.same, .relayed { fill: none; stroke: #bc4c00; stroke-width: 2 }
.relayed { stroke: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .dim { fill: #9198a1 } .axis { stroke: #3d444d }
  .one, .relayed { stroke: #9198a1 } .spread { stroke: #4493f8 } .through { fill: #4493f8 }
  .same { stroke: #f0883e }
}
"""


def picture(found: Mapping[str, Any]) -> str:
    """Throughput as a ratio to one call straight to S3, as an SVG."""
    rows: list[str] = []
    y = 34
    for part, at_a_time, words in (
        ("near", 16, "16 at a time, S3 on the same machine"),
        ("far", 1, "one at a time, S3 20 ms away"),
    ):
        chosen = [
            it for it in found.get(part, []) if it["at_a_time"] == at_a_time and it["kind"] in DRAWN
        ]
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
    scale = "throughput, to that of one PutObject or GetObject straight to S3"
    rows.append(f'<text class="dim" x="{LEFT}" y="{y - 4}">{scale}</text>')
    y += ROW
    for mark, words in (
        ("through", "the service (and its rounds, from the slowest to the fastest)"),
        ("same", "its calls to S3 made without it, one after the other"),
        ("relayed", "the same calls through a relay that only passes bytes on"),
    ):
        rows.append(_mark(mark, 0, y))
        rows.append(f'<text x="{LEFT + 12}" y="{y + 4}">{words}</text>')
        y += ROW
    body = "\n".join([f"<style>{STYLE}</style>", *grid, *rows])
    width, height = _x(1.2) + 30, y
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="Throughput as a ratio to one PutObject or GetObject">\n{body}\n</svg>\n'
    )


def _row(result: Mapping[str, Any], y: int) -> list[str]:
    spread, ways = result["ratio"]["direct"], result["ways"]
    name = result["work"].rpartition(" x")[0]
    low, high = _x(spread["low"]), _x(spread["high"])
    return [
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>',
        f'<line class="spread" x1="{low}" y1="{y}" x2="{high}" y2="{y}"/>',
        _mark("through", spread["median"], y),
        _mark("same", ways["same calls"]["of_direct"], y),
        _mark("relayed", ways["relayed"]["of_direct"], y),
    ]


def _mark(kind: str, ratio: float, y: int) -> str:
    return f'<circle class="{kind}" cx="{_x(ratio)}" cy="{y}" r="5"/>'


def _x(ratio: float) -> int:
    return round(LEFT + min(ratio, 1.3) * WIDTH)
