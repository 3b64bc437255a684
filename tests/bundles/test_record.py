"""Bundle records, their object tags, and when a bundle expires."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundles.record import DAY, BundleRecord, expiry_time, lifecycle_days

A, B, C = "a" * 64, "b" * 64, "c" * 64

EXPIRES = {"expires-at": "1800000000"}
COMPLETE = {**EXPIRES, "size": "42", "sha256": A, "hmac-sha256": B, "receipt": C}

RECORDS = [
    (BundleRecord(1_800_000_000), EXPIRES),
    (BundleRecord(253_402_300_799), {"expires-at": "253402300799"}),
    (BundleRecord(1_800_000_000, 0), {**EXPIRES, "size": "0"}),
    (BundleRecord(1_800_000_000, 5 << 30), {**EXPIRES, "size": "5368709120"}),
    (BundleRecord(1_800_000_000, sha256=A), {**EXPIRES, "sha256": A}),
    (BundleRecord(1_800_000_000, hmac=B), {**EXPIRES, "hmac-sha256": B}),
    (BundleRecord(1_800_000_000, hmac=B, receipt=C), {**EXPIRES, "hmac-sha256": B, "receipt": C}),
    (BundleRecord(1_800_000_000, 42, A, B, C), COMPLETE),
]


@pytest.mark.parametrize(("record", "tags"), RECORDS)
def test_record_is_written_to_fields_and_read_from_them(
    record: BundleRecord, tags: dict[str, str]
) -> None:
    assert record.to_fields() == tags
    assert BundleRecord.from_fields(tags) == record
    assert BundleRecord.from_fields({**tags, "cost-centre": "42"}) == record


@pytest.mark.parametrize(
    "damage",
    [
        {"expires-at": None},
        {"size": ""},
        {"size": "-1"},
        {"size": "42.0"},
        {"size": " 42"},
        {"size": "42\n"},
        {"size": "٤٢"},
        {"size": "9" * 16},
        {"sha256": ""},
        {"sha256": A[:-1]},
        {"sha256": A.upper()},
        {"expires-at": ""},
        {"expires-at": "-1"},
        {"expires-at": "1e9"},
        {"expires-at": "1800000000.5"},
        {"expires-at": "9" * 16},
        {"expires-at": "253402300800"},
        {"expires-at": "1800000000\n"},
        {"hmac-sha256": ""},
        {"hmac-sha256": B.upper()},
        {"hmac-sha256": B + "\n"},
        {"hmac-sha256": None},
        {"receipt": ""},
        {"receipt": C.upper()},
    ],
)
def test_object_with_damaged_tags_is_not_a_bundle(damage: dict[str, str | None]) -> None:
    damaged = {**COMPLETE, **damage}
    tags = {name: value for name, value in damaged.items() if value is not None}
    assert BundleRecord.from_fields(tags) is None


def test_record_with_a_malformed_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="hex"):
        BundleRecord(0, hmac="B" * 64)


def test_receipt_needs_an_hmac() -> None:
    """Otherwise a bundle whose tag `hmac-sha256` was lost would be open to every request."""
    with pytest.raises(ValueError, match="without an HMAC"):
        BundleRecord(0, receipt=C)


@pytest.mark.parametrize(("now", "expired"), [(99.999, False), (100, True), (100.001, True)])
def test_bundle_is_expired_from_its_expiry_second_on(now: float, expired: bool) -> None:  # noqa: FBT001
    assert BundleRecord(100).is_expired(now) is expired


@pytest.mark.parametrize(
    ("retention", "days"), [(1, 1), (DAY - 1, 1), (DAY, 2), (7 * DAY, 8), (7 * DAY + 1, 8)]
)
def test_lifecycle_keeps_bundles_longer_than_the_retention(retention: int, days: int) -> None:
    assert lifecycle_days(retention) == days


@given(started=st.floats(0, 4e9), retention=st.integers(1, 3650 * DAY), data=st.data())
def test_bundle_expires_before_the_lifecycle_removes_it(
    started: float, retention: int, data: st.DataObject
) -> None:
    """S3 counts the age of an object from the start of its upload, or from a later time."""
    ttl = data.draw(st.integers(1, retention))
    expires_at = expiry_time(started, ttl)
    assert started + ttl <= expires_at < started + ttl + 1
    assert expires_at <= started + lifecycle_days(retention) * DAY
