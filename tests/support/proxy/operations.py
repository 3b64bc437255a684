"""S3's names for requests."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from urllib.parse import parse_qsl, urlsplit

import botocore.session


@cache
def _operations() -> dict[tuple[str, int], list[tuple[set[str], str]]]:
    """What makes S3's operations, out of botocore's model of it.

    By method and depth of the path (1: a bucket, 2: an object): the parameters and headers that an
    operation needs, and its name, the most particular one first.
    """
    service = botocore.session.get_session().get_service_model("s3")
    operations = defaultdict(list)
    for model in map(service.operation_model, service.operation_names):
        path, _, query = model.http["requestUri"].partition("?")
        needed = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
        if shape := model.input_shape:
            for member in shape.required_members:
                match shape.members[member].serialization:
                    case {"location": "querystring" | "header", "name": name}:
                        needed.add(name.lower())
        if not model.deprecated:
            operations[model.http["method"], path.count("{")].append((needed, model.name))
    for fitting in operations.values():
        fitting.sort(key=lambda it: len(it[0]), reverse=True)
    return operations


def operation_name(method: str, target: str, headers: Iterable[str] = ()) -> str:
    """S3's name for a path-style request, or "Unknown"; names of headers in lower case."""
    url = urlsplit(target)
    bucket, _, key = url.path.lstrip("/").partition("/")
    given = {name.lower() for name, _ in parse_qsl(url.query, keep_blank_values=True)}
    given.update(headers)
    operations = _operations().get((method, bool(bucket) + bool(key)), [])
    return next((name for needed, name in operations if needed <= given), "Unknown")
