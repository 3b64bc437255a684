"""HMACs, receipts, digest headers and the claims of uploads, without a server."""

import base64
import hashlib
import hmac
import string
from uuid import UUID

import pytest
from hypothesis import strategies as st

from service.bundles.proof import (
    HmacVerifier,
    Proof,
    UploadClaims,
    UploadVerifier,
    compute_receipt,
    equal_digests,
    format_digest,
    parse_digests,
    parse_hmac,
)
from service.bundles.record import BundleRecord
from service.errors import DigestMismatch, HmacMismatch, MalformedHeader
from tests.support.fuzz import fuzz

# RFC 4231, test case 2.
KEY, DATA = b"Jefe", b"what do ya want for nothing?"
HMAC = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
BUNDLE_ID = UUID("6f1bd34b-7e51-4ffb-89a1-b14364af956c")


def test_hmac_is_the_same_however_the_bundle_is_split() -> None:
    for length in range(len(DATA) + 1):
        for claimed, valid in ((HMAC, True), (HMAC[:-1] + "4", False)):
            verifier = HmacVerifier(Proof(claimed, KEY))
            verifier.update(DATA[:length])
            verifier.update(memoryview(DATA)[length:])
            assert verifier.matches() is valid


@pytest.mark.parametrize("value", [HMAC, HMAC.upper(), HMAC[:32] + HMAC[32:].upper()])
def test_valid_hmac_header_is_parsed_to_lower_case(value: str) -> None:
    assert parse_hmac(value.encode()) == HMAC


@pytest.mark.parametrize(
    "value",
    [
        "",
        HMAC[:-1],
        HMAC + "0",
        HMAC[:-1] + "g",
        f" {HMAC}",
        f"{HMAC}\n",
        f"0x{HMAC[2:]}",
        "é" * 32,
    ],
)
def test_malformed_hmac_header_is_refused(value: str) -> None:
    with pytest.raises(MalformedHeader):
        parse_hmac(value.encode())


def test_equal_digests_compares_digests() -> None:
    assert equal_digests(HMAC, HMAC)
    assert not equal_digests(HMAC, "0" * 64)


def test_proof_does_not_show_its_key() -> None:
    assert "secret" not in repr(Proof(HMAC, b"secret"))


def test_receipt_is_an_hmac_of_the_bundle_id_and_the_hmac() -> None:
    message = f"xmtp-history-receipt-v1\0{BUNDLE_ID}\0{HMAC}".encode()
    expected = hmac.new(KEY, message, "sha256").hexdigest()
    assert compute_receipt(Proof(HMAC, KEY), BUNDLE_ID) == expected
    for other in (Proof(HMAC, b"other"), Proof("0" * 64, KEY)):
        assert compute_receipt(other, BUNDLE_ID) != expected
    assert compute_receipt(Proof(HMAC, KEY), UUID(int=1)) != expected


SHA256 = hashlib.sha256(DATA)
DIGEST_HEADER = f"sha-256=:{base64.b64encode(SHA256.digest()).decode()}:"
OTHER_DIGEST_HEADER = f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"


@pytest.mark.parametrize(
    "value",
    [
        DIGEST_HEADER,
        DIGEST_HEADER.replace("=:", ":").replace(":", "=:", 1),
        f"sha-512=:AAAA:, {DIGEST_HEADER}",
        f"{DIGEST_HEADER},sha-512=:AAAA:",
        f"{DIGEST_HEADER} ,\t md5=:AA==:",
        f"{DIGEST_HEADER};parameter=1",
        f"{OTHER_DIGEST_HEADER}, {DIGEST_HEADER}",
    ],
)
def test_sha256_is_read_from_a_digest_header(value: str) -> None:
    assert parse_digests("Repr-Digest", value.encode()) == SHA256.hexdigest()


@pytest.mark.parametrize("value", ["sha-512=:AAAA:", "unixsum=:AA==:", "xsha-256=:AAAA:"])
def test_unknown_digest_algorithms_are_ignored(value: str) -> None:
    assert parse_digests("Repr-Digest", value.encode()) is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sha-256",
        "sha-256=",
        f"sha-256={SHA256.hexdigest()}",
        f"SHA-256=:{'A' * 43}=:",
        "sha-256=:AAAA:",
        "sha-256=::",
        f"sha-256=:{'A' * 42}:",
        f"sha-256=:{'A' * 44}:",
        f"sha-256=:{'A' * 42}_=:",
        f"{DIGEST_HEADER},",
        f",{DIGEST_HEADER}",
        f"{DIGEST_HEADER} {DIGEST_HEADER}",
        f"{DIGEST_HEADER}; a, b",
        "sha-256=1",
        "sha-256=:é:",
    ],
)
def test_malformed_digest_header_is_refused(value: str) -> None:
    with pytest.raises(MalformedHeader):
        parse_digests("Content-Digest", value.encode())


def test_parsing_time_of_a_digest_header_grows_linearly() -> None:
    """With a pattern that can match white space in two ways, each `;` would double the time."""
    with pytest.raises(MalformedHeader):
        parse_digests("Repr-Digest", b"a=::; ," * 8000 + b"!")


@fuzz(st.binary(max_size=70) | st.text(string.hexdigits, min_size=63, max_size=65).map(str.encode))
def test_any_hmac_header_is_parsed_or_refused(value: bytes) -> None:
    if len(value) == 64 and set(value) <= set(string.hexdigits.encode()):
        assert parse_hmac(value) == value.decode().lower()
    else:
        with pytest.raises(MalformedHeader):
            parse_hmac(value)


@fuzz(st.binary(max_size=60) | st.text("sha-256=:;,A \t", max_size=60).map(str.encode))
def test_any_digest_header_is_parsed_or_refused(value: bytes) -> None:
    try:
        digest = parse_digests("Repr-Digest", value)
    except MalformedHeader:
        return
    assert digest is None or parse_digests("", format_digest(digest).encode()) == digest


MEMBERS = st.tuples(
    st.sampled_from(["sha-256", "sha-512", "sha-25", "*", "a_b.c-*0"]),
    st.binary(min_size=32, max_size=32),
    st.sampled_from(["=", ""]),
    st.sampled_from(["", ";a", ";a=1", "  ; *b=?0;c", ';d="; sha-256=:AA==:"']),
    st.sampled_from([",", ", ", "\t,", " , \t"]),
)
"""Members of a dictionary (RFC 9651): key, bytes, Base64 padding, parameters and separator."""


@fuzz(st.lists(MEMBERS, min_size=1, max_size=4))
def test_digest_header_is_parsed_as_a_dictionary_of_rfc_9651(
    members: list[tuple[str, bytes, str, str, str]],
) -> None:
    value = ""
    for key, content, padding, parameters, separator in members:
        encoded = base64.b64encode(content).decode().rstrip("=") + padding
        value += f"{key}=:{encoded}:{parameters}{separator}"
    value = value.rstrip(", \t")
    digests = {key: content.hex() for key, content, *_ in members}
    assert parse_digests("Repr-Digest", value.encode()) == digests.get("sha-256")


def test_digest_is_formatted_as_a_header() -> None:
    assert format_digest(SHA256.hexdigest()) == DIGEST_HEADER


def test_digest_header_has_at_most_256_members() -> None:
    assert parse_digests("Repr-Digest", b",".join([b"a=::"] * 256)) is None
    with pytest.raises(MalformedHeader, match="at most 256"):
        parse_digests("Repr-Digest", b",".join([b"a=::"] * 257))


OTHER = "0" * 64

CLAIMS: list[tuple[UploadClaims, type[Exception] | None]] = [
    (UploadClaims(), None),
    (UploadClaims(HMAC), None),
    (UploadClaims(OTHER), None),  # Without the key, only a download can verify it.
    (UploadClaims(HMAC, KEY), None),
    (UploadClaims(OTHER, KEY), HmacMismatch),
    (UploadClaims(HMAC, b"another key"), HmacMismatch),
    (UploadClaims(digests=[SHA256.hexdigest()]), None),
    (UploadClaims(digests=[SHA256.hexdigest(), SHA256.hexdigest()]), None),
    (UploadClaims(digests=[SHA256.hexdigest(), OTHER]), DigestMismatch),
    (UploadClaims(digests=[OTHER, SHA256.hexdigest()]), DigestMismatch),
    (UploadClaims(HMAC, KEY, [SHA256.hexdigest()]), None),
    (UploadClaims(OTHER, KEY, [OTHER]), DigestMismatch),
]


@pytest.mark.parametrize(("claims", "error"), CLAIMS)
@pytest.mark.parametrize("length", [1, 13, len(DATA)])
def test_received_bytes_are_checked_against_the_claims(
    claims: UploadClaims, error: type[Exception] | None, length: int
) -> None:
    verifier = UploadVerifier(claims)
    for start in range(0, len(DATA), length):
        verifier.update(DATA[start : start + length])
    if error is None:
        verifier.verify()
    else:
        with pytest.raises(error):
            verifier.verify()


def test_record_of_an_upload_has_only_what_was_claimed() -> None:
    sha256, receipt = SHA256.hexdigest(), compute_receipt(Proof(HMAC, KEY), BUNDLE_ID)
    for claims, record in [
        (UploadClaims(), BundleRecord(9, 5)),
        (UploadClaims(HMAC), BundleRecord(9, 5, None, HMAC)),
        (UploadClaims(HMAC, KEY), BundleRecord(9, 5, None, HMAC, receipt)),
        (UploadClaims(digests=[sha256, sha256]), BundleRecord(9, 5, sha256)),
    ]:
        assert claims.record(BUNDLE_ID, 9, 5) == record
    assert UploadClaims().record(BUNDLE_ID, 9, None) == BundleRecord(9)


def test_claims_do_not_show_their_key() -> None:
    assert "secret" not in repr(UploadClaims(HMAC, b"secret"))
