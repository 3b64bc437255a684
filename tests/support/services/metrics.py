"""Reading the page of metrics."""

import re


def metric_total(page: str, name: str) -> float:
    """Return the sum of a metric over all labels. The name is without the prefix `history_`."""
    return sum(map(float, re.findall(rf"^history_{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)))
