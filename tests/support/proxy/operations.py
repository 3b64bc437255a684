"""The names of S3's operations."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from urllib.parse import parse_qsl, urlsplit

import botocore.session


@cache
def _operations() -> dict[tuple[str, int], list[tuple[set[str], str]]]:
    """Read from botocore's model of S3 how to recognise each operation.

    The keys are the method and the depth of the path (1: a bucket, 2: an object). The values are
    the parameters and headers that an operation requires, and its name. The operation with the
    most requirements comes first.
    """
    service = botocore.session.get_session().get_service_model("s3")
    operations = defaultdict(list)
    for model in map(service.operation_model, service.operation_names):
        path, _, query = model.http["requestUri"].partition("?")
        required = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
        if shape := model.input_shape:
            for member in shape.required_members:
                match shape.members[member].serialization:
                    case {"location": "querystring" | "header", "name": name}:
                        required.add(name.lower())
        if not model.deprecated:
            operations[model.http["method"], path.count("{")].append((required, model.name))
    for candidates in operations.values():
        candidates.sort(key=lambda candidate: len(candidate[0]), reverse=True)
    return operations


def operation_name(method: str, target: str, headers: Iterable[str] = ()) -> str:
    """Return S3's name for a path-style request, or "Unknown". Header names are in lower case."""
    url = urlsplit(target)
    bucket, _, key = url.path.lstrip("/").partition("/")
    present = {name.lower() for name, _ in parse_qsl(url.query, keep_blank_values=True)}
    present.update(headers)
    operations = _operations().get((method, bool(bucket) + bool(key)), [])
    return next((name for required, name in operations if required <= present), "Unknown")
