"""Reading a page of metrics."""

import re


def metric_total(page: str, name: str) -> float:
    """Return the sum of a metric over its labels; the name goes without `history_`."""
    return sum(map(float, re.findall(rf"^history_{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)))
