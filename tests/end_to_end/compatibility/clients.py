"""All clients, for the tests that run with each of them."""

import base64
from collections.abc import Sequence
from typing import Any

import pytest

from tests.end_to_end.compatibility.client import Bundle, Client, seal
from tests.end_to_end.compatibility.libxmtp import (
    Libxmtp,
    LibxmtpInABrowser,
    LibxmtpOf2024,
    LibxmtpWithSlash,
)
from tests.end_to_end.compatibility.other_clients import Http10, JdkHttpClient
from tests.end_to_end.compatibility.reference_clients import (
    ReferenceCurl,
    ReferenceNode,
    ReferenceNodeItself,
    ReferencePython,
    needs_curl,
    needs_node,
)
from tests.end_to_end.compatibility.xmtp_formats import History

CLIENTS: list[Any] = [
    Libxmtp,
    LibxmtpWithSlash,
    LibxmtpOf2024,
    LibxmtpInABrowser,
    ReferenceNode,
    pytest.param(ReferenceNodeItself, marks=needs_node),
    ReferencePython,
    JdkHttpClient,
    Http10,
]
CURL = pytest.param(ReferenceCurl, marks=needs_curl)


def sent_by(client: Client, history: History) -> tuple[Bundle, Sequence[bytes]]:
    """The bundle, and what this client makes of it."""
    bundle = seal(history, "jsonl" if client.form == "jsonl" else "archive")
    if client.form == "text":
        return bundle, [base64.b64encode(b"".join(bundle.batches))]
    return bundle, bundle.batches
