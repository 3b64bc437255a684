"""The results of the benchmark for people: a table on the terminal, and an SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
FAR_GOALS = {"upload": (0.85, 0.85), "download": (0.85, 0.85), "first download": (0.80, 0.60)}
"""What to reach of a single call's throughput, one transfer at a time: up to 1 MiB, and above."""

CPU_GOALS = {
    ("upload with key", 4 * KIB, 16): 1.6,
    ("upload with key", 1 * MIB, 16): 2.2,
    ("upload with key", 12 * MIB, 8): 3.0,
    ("download", 4 * KIB, 16): 2.4,
    ("download", 1 * MIB, 16): 1.8,
    ("download", 12 * MIB, 8): 1.6,
}
"""How much of a single call's CPU time to use at most, by kind, size and concurrency."""

COLUMNS = (
    f"{'':28} {'vs. single call':>17} {'goal':>4} {'vs. same calls':>17} {'vs. relayed calls':>17} "
    f"{'MiB/s':>7} {'call ms':>7} {'p50 ms':>7} {'p99 ms':>7} {'TTFB ms':>8} {'time x':>17} "
    f"{'CPU ms':>7} {'s/GiB':>7} {'CPU x':>17} {'goal':>4} {'calls':>5}"
)
TITLES = {
    "near": "Throughput relative to that without the service, with the store on the same machine",
    "far": "The same with 20 ms to the store",
}
LEGEND = (
    "vs.: median (lowest–highest) of the rounds, and what should be reached.\n"
    "call ms: the median time of a single call.\n"
    "TTFB: time to first byte. time x: the time of a transfer, divided by that of a single call.\n"
    "CPU ms, s/GiB: the service's CPU time per transfer and per GiB.\n"
    "CPU x: the same, divided by the client's for single calls. calls: S3 calls per transfer."
)


def table_header(part: str) -> str:
    return f"\n{TITLES[part]}\n{LEGEND}\n{COLUMNS}"


def table_row(part: str, result: Mapping[str, Any]) -> str:
    service, cpu = result["ways"]["through"], result["service_cpu"]
    return (
        f"{result['work']:28} {_format_ratio(result['ratio']['direct']):>17} "
        f"{_format_goal(throughput_goal(part, result)):>4} "
        f"{_format_ratio(result['ratio']['same calls']):>17} "
        f"{_format_ratio(result['ratio']['relayed']):>17} "
        f"{service['mib_per_s']:7.1f} {result['ways']['direct']['p50']:7.1f} "
        f"{service['p50']:7.1f} {service['p99']:7.1f} {service['first_byte']:8.1f} "
        f"{_format_ratio(result['time_to_bare_call']):>17} "
        f"{cpu['ms_per_transfer']:7.2f} {cpu['s_per_gib']:7.2f} "
        f"{_format_ratio(cpu['to_bare_call']):>17} {_format_goal(cpu_goal(part, result)):>4} "
        f"{result['s3_requests']:5.2f}"
    )


def throughput_goal(part: str, result: Mapping[str, Any]) -> float | None:
    goals = FAR_GOALS.get(result["kind"])
    if part != "far" or result["at_a_time"] != 1 or goals is None:
        return None
    return goals[result["size"] > MIB]


def cpu_goal(part: str, result: Mapping[str, Any]) -> float | None:
    key = (result["kind"], result["size"], result["at_a_time"])
    return CPU_GOALS.get(key) if part == "near" else None


def _format_goal(goal: float | None) -> str:
    return "" if goal is None else f"{goal:.2f}"


def _format_ratio(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f}–{spread['high']:.2f})"


def scaling_table(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["\nMiB/s by number of replicas, with 20 ms to the store"]
    for result in results:
        rates = "   ".join(f"{count}: {rate}" for count, rate in result["mib_per_s"].items())
        lines.append(f"{result['work']:28} {rates}")
    return "\n".join(lines)


def memory_line(result: Mapping[str, Any]) -> str:
    return (
        f"\n64 concurrent uploads of 100 MiB: at most {result['peak_mib']} MiB of resident memory "
        f"({result['before_mib']} MiB before), {result['refused']} times refused and retried"
    )


SVG_KINDS = ("upload", "first download", "download")
"""The kinds of transfer in the SVG."""

ROW, LEFT, WIDTH = 22, 190, 420
"""Pixels: the height of a row, the x of the scale's 0, and the distance from there to its 1."""

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
.goal { stroke: #1a7f37; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .dim { fill: #9198a1 } .axis { stroke: #3d444d }
  .one, .relayed { stroke: #9198a1 } .spread { stroke: #4493f8 } .through { fill: #4493f8 }
  .same { stroke: #f0883e } .goal { stroke: #3fb950 }
}
"""


def render_svg(results: Mapping[str, Any]) -> str:
    """Draw the throughput relative to that of a single call without the service."""
    elements: list[str] = []
    y = 34
    for part, concurrency, title in (
        ("near", 16, "16 transfers at a time, S3 on the same machine"),
        ("far", 1, "1 transfer at a time, S3 20 ms away"),
    ):
        selected = [
            result
            for result in results.get(part, [])
            if result["at_a_time"] == concurrency and result["kind"] in SVG_KINDS
        ]
        if selected:
            elements.append(f'<text class="title" x="8" y="{y + 4}">{title}</text>')
            y += ROW
        for result in selected:
            elements += _row(result, y)
            if (goal := throughput_goal(part, result)) is not None:
                elements.append(_goal(goal, y))
            y += ROW
        y += ROW // 2
    grid = [
        f'<line class="{"one" if tick == 10 else "axis"}" x1="{_x(tick / 10)}" y1="20" '
        f'x2="{_x(tick / 10)}" y2="{y - 16}"/>'
        f'<text class="dim" x="{_x(tick / 10)}" y="14" text-anchor="middle">{tick / 10:g}</text>'
        for tick in (0, 2, 4, 6, 8, 10, 12)
    ]
    scale_label = "throughput relative to a single PutObject or GetObject without the service"
    elements.append(f'<text class="dim" x="{LEFT}" y="{y - 4}">{scale_label}</text>')
    y += ROW
    for mark, label in (
        ("through", "the service (bar: from its slowest round to its fastest)"),
        ("same", "the same S3 calls without the service"),
        ("relayed", "those calls through a relay that only passes bytes on"),
        ("goal", "what the service should reach"),
    ):
        elements.append(_goal(0, y) if mark == "goal" else _mark(mark, 0, y))
        elements.append(f'<text x="{LEFT + 12}" y="{y + 4}">{label}</text>')
        y += ROW
    body = "\n".join([f"<style>{STYLE}</style>", *grid, *elements])
    width, height = _x(1.2) + 30, y
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="Throughput relative to a single PutObject or GetObject">\n{body}\n</svg>\n'
    )


def _row(result: Mapping[str, Any], y: int) -> list[str]:
    spread, variants = result["ratio"]["direct"], result["ways"]
    name = result["work"].rpartition(" x")[0]
    low, high = _x(spread["low"]), _x(spread["high"])
    return [
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>',
        f'<line class="spread" x1="{low}" y1="{y}" x2="{high}" y2="{y}"/>',
        _mark("through", spread["median"], y),
        _mark("same", variants["same calls"]["of_direct"], y),
        _mark("relayed", variants["relayed"]["of_direct"], y),
    ]


def _goal(ratio: float, y: int) -> str:
    x = _x(ratio)
    return f'<line class="goal" x1="{x}" y1="{y - 8}" x2="{x}" y2="{y + 8}"/>'


def _mark(css_class: str, ratio: float, y: int) -> str:
    return f'<circle class="{css_class}" cx="{_x(ratio)}" cy="{y}" r="5"/>'


def _x(ratio: float) -> int:
    return round(LEFT + min(ratio, 1.3) * WIDTH)
