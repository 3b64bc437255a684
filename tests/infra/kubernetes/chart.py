"""The Helm chart, and a Python implementation of the simplest expressions in its templates.

`test_chart.py` uses it, so that the chart is compared with the manifests on every machine.
`test_rendering.py` does the same with Helm itself.
"""

import json
import re
from functools import reduce
from textwrap import indent
from typing import Any

import yaml

from tests.infra.kubernetes.manifests import Object, StrictLoader, read
from tests.support.repository import ROOT

CHART = ROOT / "infra" / "helm"

NEEDED: dict[str, dict[str, str]] = {
    "image": {"repository": "message-history-server"},
    "settings": {"HISTORY_BUCKET": "my-histories"},
    "ingress": {"host": "history.example.org"},
}
"""The values that have no default. Those of the image and the host are placeholders in the base."""

UNKNOWN = "(an expression that only Helm evaluates)"

_TO_YAML = re.compile(r"^ *\{\{- toYaml \.Values\.([\w.]+) \| nindent (\d+) \}\}\n", re.MULTILINE)
_LINE = re.compile(r"^ *\{\{-.*?\}\}\n", re.MULTILINE)
_VALUE = re.compile(r"\{\{ \.Values\.([\w.]+)(?: \| quote)? \}\}")
_EXPRESSION = re.compile(r"\{\{.*?\}\}", re.DOTALL)


def values() -> Any:
    """Return the default values."""
    return read(CHART / "values.yaml")


def schema() -> Any:
    return json.loads((CHART / "values.schema.json").read_text())


def complete_values() -> Any:
    """Return the default values together with NEEDED."""
    return {
        name: default | NEEDED[name] if name in NEEDED else default
        for name, default in values().items()
    }


def default(name: str) -> Any:
    """Return the default of a value such as `ingress.host`, or UNKNOWN if it has none."""
    value = reduce(lambda group, key: group.get(key, {}), name.split("."), values())
    return UNKNOWN if value == {} else value


def templates() -> list[Object]:
    """Return the object in each template, with all its conditional parts, and default values.

    Lines that are a single expression are left out, other than `toYaml`.
    """
    return [
        yaml.load(_evaluate(path.read_text()), StrictLoader)
        for path in sorted((CHART / "templates").glob("*.yaml"))
    ]


def _evaluate(text: str) -> str:
    text = _TO_YAML.sub(
        lambda match: indent(yaml.dump(default(match[1])), " " * int(match[2])), text
    )
    text = _VALUE.sub(
        lambda match: yaml.dump(default(match[1])).partition("\n")[0], _LINE.sub("", text)
    )
    return _EXPRESSION.sub(f'"{UNKNOWN}"', text)
