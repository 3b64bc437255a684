"""A record and its tags, both ways; expiry_time and the lifecycle that must never come first."""

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
def test_both_ways(record: BundleRecord, tags: dict[str, str]) -> None:
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
def test_damaged_tags_are_no_bundle(damage: dict[str, str | None]) -> None:
    tags = {**RECORDS[2][1], **damage}
    assert BundleRecord.from_tags({k: v for k, v in tags.items() if v is not None}) is None


def test_a_record_is_checked_when_made() -> None:
    with pytest.raises(ValueError, match="hex"):
        BundleRecord(A, 0, "B" * 64)


@pytest.mark.parametrize(("now", "expired"), [(99.999, False), (100, True), (100.001, True)])
def test_refused_from_the_very_second(now: float, expired: bool) -> None:  # noqa: FBT001
    assert BundleRecord(A, 100).is_expired(now) is expired


@pytest.mark.parametrize(
    ("retention", "days"), [(1, 1), (DAY - 1, 1), (DAY, 2), (7 * DAY, 8), (7 * DAY + 1, 8)]
)
def test_lifecycle_days(retention: int, days: int) -> None:
    assert lifecycle_days(retention) == days


@given(
    started=st.floats(0, 4e9),
    took=st.floats(0, 30 * DAY),
    retention=st.integers(1, 3650 * DAY),
    data=st.data(),
)
def test_the_lifecycle_never_comes_first(
    started: float, took: float, retention: int, data: st.DataObject
) -> None:
    life = data.draw(st.integers(1, retention))
    now = started + took
    ends = expiry_time(started=started, now=now, ttl=life, retention=retention)
    removed_at_the_earliest = started + lifecycle_days(retention) * DAY
    assert ends <= removed_at_the_earliest
    assert ends - 1 < now + life
    assert ends >= min(now + life, int(removed_at_the_earliest))
