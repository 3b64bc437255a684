"""The list of all clients, for tests that run with each of them."""

import base64
from collections.abc import Sequence
from typing import Any

import pytest

from tests.end_to_end.compatibility.client import Bundle, Client, encrypt_history
from tests.end_to_end.compatibility.libxmtp import (
    Libxmtp,
    LibxmtpInBrowser,
    LibxmtpOf2024,
    LibxmtpWithTrailingSlash,
)
from tests.end_to_end.compatibility.other_clients import Http10, JdkHttpClient
from tests.end_to_end.compatibility.reference_clients import (
    InstalledNode,
    ReferenceCurl,
    ReferenceNode,
    ReferencePython,
    needs_curl,
    needs_node,
)
from tests.end_to_end.compatibility.xmtp_formats import History

CLIENTS: list[Any] = [
    Libxmtp,
    LibxmtpWithTrailingSlash,
    LibxmtpOf2024,
    LibxmtpInBrowser,
    ReferenceNode,
    pytest.param(InstalledNode, marks=needs_node),
    ReferencePython,
    JdkHttpClient,
    Http10,
]
CURL = pytest.param(ReferenceCurl, marks=needs_curl)


def encode_for(client: Client, history: History) -> tuple[Bundle, Sequence[bytes]]:
    """Return the bundle, and the batches that this client sends."""
    bundle = encrypt_history(history, "jsonl" if client.bundle_format == "jsonl" else "archive")
    if client.bundle_format == "text":
        return bundle, [base64.b64encode(b"".join(bundle.batches))]
    return bundle, bundle.batches
