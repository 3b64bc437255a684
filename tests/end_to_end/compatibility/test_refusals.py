"""A refusal that is sent before the body has been read reaches the client as a whole."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from service.http.auth.authorizer import hash_token
from tests.end_to_end.compatibility.reference_clients import needs_curl, needs_node, run_program
from tests.support.clients.signing import random_bytes
from tests.support.services.thread import Service, running_service
from tests.support.stores import Store

BUNDLE = random_bytes(1, 20 << 20)
NODE = """
    const parts = []
    for await (const part of process.stdin) parts.push(part)
    const response = await fetch(process.argv[1], {method: 'POST', body: Buffer.concat(parts)})
    process.stdout.write(await response.text() + response.status)
"""


@pytest.fixture(scope="module")
def service(store: Store, s3: Any) -> Iterator[Service]:
    with running_service(store, s3, upload_tokens=f"app:{hash_token('a token')}") as service:
        yield service


def with_curl(url: str, *arguments: str) -> str:
    command = ("curl", "-sS", "--data-binary", "@-", "-w", "%{http_code}", *arguments, url)
    process = run_program(*command, stdin=BUNDLE)
    assert process.returncode == 0, process.stderr.decode()
    return process.stdout.decode()


def without_expect(url: str) -> str:
    """Send the body at once, where curl would wait for a 100 response."""
    return with_curl(url, "-H", "Expect:")


def with_node(url: str) -> str:
    process = run_program("node", "--input-type=module", "--eval", NODE, url, stdin=BUNDLE)
    assert process.returncode == 0, process.stderr.decode()
    return process.stdout.decode()


def with_requests(url: str, *, chunked: bool = False) -> str:
    pieces = (BUNDLE[start : start + 8192] for start in range(0, len(BUNDLE), 8192))
    response = requests.post(url, data=pieces if chunked else BUNDLE, timeout=20)
    return f"{response.text}{response.status_code}"


def chunked_with_requests(url: str) -> str:
    return with_requests(url, chunked=True)


@pytest.mark.parametrize("path", ["/upload", "/t/wrong/upload"])
@pytest.mark.parametrize(
    "upload",
    [
        pytest.param(with_curl, marks=needs_curl),
        pytest.param(without_expect, marks=needs_curl),
        pytest.param(with_node, marks=needs_node),
        with_requests,
        chunked_with_requests,
    ],
)
def test_client_without_a_token_gets_the_whole_refusal(
    service: Service, upload: Callable[[str], str], path: str
) -> None:
    for _ in range(5):
        output = upload(f"{service.url}{path}")
        assert output.endswith("401")
        assert json.loads(output.removesuffix("401"))["code"] == "unauthorized"
    assert service.objects() == []
