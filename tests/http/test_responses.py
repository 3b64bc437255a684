"""What happens to a download if its response cannot be built."""

import pytest

from service.http import responses
from tests.support.clients.signing import random_bytes, sign
from tests.support.services.thread import Service

BUNDLE = random_bytes(1, 1 << 20)


def test_download_whose_response_cannot_be_built_is_closed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of them would keep a window and a connection to S3 for ever."""
    proof = sign("a signing key", BUNDLE)
    bundle_id = service.upload(BUNDLE, proof["X-HMAC"])

    def fail(_: float) -> str:
        raise ValueError("no such date")

    with monkeypatch.context() as broken:
        broken.setattr(responses, "http_date", fail)
        for headers in ({}, {"Range": "bytes=0-9"}):
            response = service.fetch(bundle_id, {**proof, **headers, "Connection": "close"})
            assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    metrics = service.metrics()
    assert metrics['history_memory_used_bytes{pool="windows"}'] == 0
    assert metrics['history_memory_used_bytes{pool="buffers"}'] == 0
    assert service.fetch(bundle_id, proof).content == BUNDLE
