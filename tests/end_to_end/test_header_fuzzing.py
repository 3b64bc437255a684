"""Requests with arbitrary header values are accepted or get a response with a known error."""

import hashlib
from uuid import uuid4

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.bundles.proof import format_digest
from service.http.problems import STATUS
from tests.support.clients.signing import sign
from tests.support.services.thread import Service

KEY, BUNDLE = "a signing key", b"bundle"
HMAC = sign(KEY, BUNDLE)["X-HMAC"].encode()
PROOF = {b"X-HMAC": HMAC, b"X-SIGNING-KEY": KEY.encode()}
DIGEST = format_digest(hashlib.sha256(BUNDLE).hexdigest()).encode()
OTHER_DIGEST = format_digest("0" * 64).encode()

REALISTIC = {
    b"X-HMAC": [HMAC, HMAC.upper(), HMAC[:-1], b"0" * 64],
    b"X-SIGNING-KEY": [KEY.encode(), b"another"],
    b"X-TTL": [b"1", b"604800", b"604801", b"0", b"-1", b"1.5", b"9" * 5000],
    b"Content-Digest": [DIGEST, OTHER_DIGEST, b"a=::; b"],
    b"Repr-Digest": [DIGEST, OTHER_DIGEST, b"md5=:AA==:", b"sha-256=:AA==:"],
    b"Content-Type": [
        b"text/plain; charset=x",
        b"multipart/form-data",
        b"multipart/form-data; boundary=b",
        b"multipart/form-data; boundary*=x''b; boundary*0=b",
    ],
    b"Range": [b"bytes=1-2", b"bytes=-1", b"bytes=6-", b"bytes=0-1,3-4", b"bytes=" + b"9" * 5000],
    b"If-Match": [b"*", b'W/"a"', b'"a", "b"', b'"%b"' % hashlib.md5(BUNDLE).hexdigest().encode()],
    b"If-Range": [
        b'"a"',
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:37 +" + b"9" * 30,
        b"Sun, 06 Nov 99999999999 08:49:37 GMT",
    ],
    b"Accept": [b"text/html", b"text/html;q=0.5, */*", b"text/html;q=" + b"1" * 5000],
    b"Origin": [b"https://a.example", b"null"],
}
GARBAGE = (
    st.binary(max_size=30)
    | st.text("bytes=-01:;,.*/\"W'()\\ \t\xe9").map(lambda text: text.encode("latin-1"))
).map(lambda value: value.translate(None, b"\0\n\v\f\r").strip(b" \t"))
HEADERS = st.lists(
    st.one_of(
        *(st.tuples(st.just(name), st.sampled_from(values)) for name, values in REALISTIC.items()),
        st.tuples(st.sampled_from(list(REALISTIC)), GARBAGE),
    ),
    max_size=5,
)
FEW_EXAMPLES = settings(deadline=None, derandomize=True, max_examples=50)

Headers = list[tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def bundle_id(service: Service) -> str:
    return service.upload(BUNDLE, HMAC.decode())


def checked_status(response: httpx.Response) -> int:
    """Return the status. It must not be a server error; a client error needs a problem document."""
    if response.status_code >= 400:
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.request.method == "HEAD" or (
            STATUS[response.json()["code"]] == response.json()["status"] == response.status_code
        )
    assert response.status_code < 500
    return response.status_code


@FEW_EXAMPLES
@given(HEADERS)
@example([(b"Content-Digest", b"a=::; ," * 99 + b"!")])
def test_upload_with_arbitrary_headers(service: Service, headers: Headers) -> None:
    response = service.http.post("/upload", content=BUNDLE, headers=headers)
    assert checked_status(response) in {200, 400, 422}


@FEW_EXAMPLES
@given(HEADERS)
def test_requests_with_arbitrary_headers(service: Service, headers: Headers) -> None:
    assert checked_status(service.http.get("/", headers=headers)) == 200
    path = f"/files/{uuid4()}"
    for method in ("GET", "HEAD", "DELETE"):
        assert checked_status(service.http.request(method, path, headers=headers)) in {400, 404}


@FEW_EXAMPLES
@given(HEADERS.map(lambda headers: [header for header in headers if header[0] not in PROOF]))
def test_download_with_arbitrary_headers(
    service: Service, bundle_id: str, headers: Headers
) -> None:
    response = service.http.get(f"/files/{bundle_id}", headers=[*PROOF.items(), *headers])
    status = checked_status(response)
    if status == 206:
        start, stop = response.headers["Content-Range"].removeprefix("bytes ")[:-2].split("-")
        assert response.content == BUNDLE[int(start) : int(stop) + 1]
    elif status == 200:
        assert response.content == BUNDLE
    else:
        assert status in {412, 416}
