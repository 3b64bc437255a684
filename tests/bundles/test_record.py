"""Bundle records, their object tags, and when a bundle expires."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundles.record import DAY, BundleRecord, expiry_time, lifecycle_days

A, B, C = "a" * 64, "b" * 64, "c" * 64

RECORDS = [
    (BundleRecord(A, 1_800_000_000), {"sha256": A, "expires-at": "1800000000"}),
    (
        BundleRecord(A, 1_800_000_000, B),
        {"sha256": A, "expires-at": "1800000000", "hmac-sha256": B},
    ),
    (
        BundleRecord(A, 1_800_000_000, B, C),
        {"sha256": A, "expires-at": "1800000000", "hmac-sha256": B, "receipt": C},
    ),
]


@pytest.mark.parametrize(("record", "tags"), RECORDS)
def test_record_is_written_to_tags_and_read_from_them(
    record: BundleRecord, tags: dict[str, str]
) -> None:
    assert record.to_tags() == tags
    assert BundleRecord.from_tags(tags) == record
    assert BundleRecord.from_tags({**tags, "cost-centre": "42"}) == record


@pytest.mark.parametrize(
    "damage",
    [
        {"sha256": None},
        {"expires-at": None},
        {"sha256": A[:-1]},
        {"sha256": A.upper()},
        {"expires-at": ""},
        {"expires-at": "-1"},
        {"expires-at": "1e9"},
        {"expires-at": "1800000000.5"},
        {"expires-at": "9" * 13},
        {"hmac-sha256": ""},
        {"hmac-sha256": B.upper()},
        {"hmac-sha256": B + "\n"},
        {"hmac-sha256": None},
        {"receipt": ""},
        {"receipt": C.upper()},
    ],
)
def test_object_with_damaged_tags_is_not_a_bundle(damage: dict[str, str | None]) -> None:
    damaged = {**RECORDS[2][1], **damage}
    tags = {name: value for name, value in damaged.items() if value is not None}
    assert BundleRecord.from_tags(tags) is None


def test_record_with_a_malformed_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="hex"):
        BundleRecord(A, 0, "B" * 64)


@pytest.mark.parametrize(("now", "expired"), [(99.999, False), (100, True), (100.001, True)])
def test_bundle_is_expired_from_its_expiry_second_on(now: float, expired: bool) -> None:  # noqa: FBT001
    assert BundleRecord(A, 100).is_expired(now) is expired


@pytest.mark.parametrize(
    ("retention", "days"), [(1, 1), (DAY - 1, 1), (DAY, 2), (7 * DAY, 8), (7 * DAY + 1, 8)]
)
def test_lifecycle_keeps_bundles_longer_than_the_retention(retention: int, days: int) -> None:
    assert lifecycle_days(retention) == days


@given(
    started=st.floats(0, 4e9),
    duration=st.floats(0, 30 * DAY),
    retention=st.integers(1, 3650 * DAY),
    data=st.data(),
)
def test_bundle_expires_before_the_lifecycle_removes_it(
    started: float, duration: float, retention: int, data: st.DataObject
) -> None:
    ttl = data.draw(st.integers(1, retention))
    now = started + duration
    expires_at = expiry_time(started=started, now=now, ttl=ttl, retention=retention)
    earliest_removal = started + lifecycle_days(retention) * DAY
    assert expires_at <= earliest_removal
    assert expires_at - 1 < now + ttl
    assert expires_at >= min(now + ttl, int(earliest_removal))
