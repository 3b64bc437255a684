"""The pure part of the proof."""

import pytest

from service.errors import MalformedHeader
from service.proof import Proof, Verification, parse_hmac, same

# RFC 4231, test case 2.
KEY, DATA = b"Jefe", b"what do ya want for nothing?"
HMAC = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


def test_verification_is_hmac_sha256_however_the_bundle_is_cut() -> None:
    for cut in range(len(DATA) + 1):
        verification = Verification(KEY)
        verification.update(DATA[:cut])
        verification.update(memoryview(DATA)[cut:])
        assert verification.holds(HMAC)
        assert not verification.holds(HMAC[:-1] + "4")


@pytest.mark.parametrize("value", [HMAC, HMAC.upper(), HMAC[:32] + HMAC[32:].upper()])
def test_parse_hmac(value: str) -> None:
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
def test_parse_hmac_refuses(value: str) -> None:
    with pytest.raises(MalformedHeader):
        parse_hmac(value.encode())


def test_same() -> None:
    assert same(HMAC, HMAC)
    assert not same(HMAC, "0" * 64)


def test_a_proof_does_not_show_its_key() -> None:
    assert "secret" not in repr(Proof(HMAC, b"secret"))
