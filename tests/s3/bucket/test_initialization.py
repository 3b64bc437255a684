"""The `init-bucket` command: safe to repeat, and keeps what others configured."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import boto3
import pytest

from service.errors import BucketError
from service.s3 import retries
from service.s3.bucket.initialization import lifecycle_rule
from service.settings import Settings
from tests.support.polling import wait_until
from tests.support.proxy import Fault, Proxy, Respond
from tests.support.services.thread import init_bucket, running_service
from tests.support.stores import Store
from tests.support.stores.selection import XDIST_GROUPS

OTHER_RULE = {
    "ID": "another rule",
    "Status": "Enabled",
    "Filter": {"Prefix": "logs/"},
    "Expiration": {"Days": 3},
}


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.1)


@pytest.fixture
def config() -> Settings:
    return Settings(bucket=f"history-{uuid4()}")


def rules(s3: Any, config: Settings) -> list[dict[str, Any]]:
    lifecycle: list[dict[str, Any]] = s3.get_bucket_lifecycle_configuration(Bucket=config.bucket)[
        "Rules"
    ]
    return [{name: rule[name] for name in rule if name != "Prefix"} for rule in lifecycle]


@pytest.mark.every_store
def test_bucket_is_created_once_and_then_left_unchanged(
    store: Store, s3: Any, config: Settings
) -> None:
    effect = "bundles are removed after 8 days, abandoned uploads after 1)"
    if "abort rule" in store.lacks:
        effect = "bundles are removed after 8 days; this store does not keep AbortIncomplete"
    first = init_bucket(store, config)
    second = init_bucket(store, config)
    assert first[0] == f"bucket {config.bucket}: created"
    assert second[0] == f"bucket {config.bucket}: exists"
    if "lifecycle rules" in store.lacks:
        assert first[1] == second[1]
        assert first[1].startswith("lifecycle: not offered by this store; nothing removes expired")
    else:
        assert first[1].startswith(f"lifecycle: set ({effect}")
        assert second[1].startswith(f"lifecycle: unchanged ({effect}")
        expected: Any = lifecycle_rule("bundles/", 7 * 86_400)
        if "abort rule" in store.lacks:
            del expected["AbortIncompleteMultipartUpload"]
        assert rules(s3, config) == [expected]
    if "public access block" in store.lacks:
        assert first[2] == second[2]
        assert first[2].startswith("public access: block not offered by this store; keep the")
    else:
        block = s3.get_public_access_block(Bucket=config.bucket)["PublicAccessBlockConfiguration"]
        assert block.pop("BlockPublicAcls") is ("BlockPublicAcls" not in first[2])
        assert set(block.values()) == {True}
        assert second[2].startswith("public access: already blocked")
    if "encryption" in store.lacks:
        assert re.match("encryption: not (offered by|possible on) this store", first[3])
    else:
        assert first[3].startswith(("encryption: set", "encryption: already on"))
    assert first[4] == f"records: kept in {store.records}"
    s3.put_object(Bucket=config.bucket, Key="bundles/x", Body=b"the owner may write")
    assert not s3.list_objects_v2(Bucket=config.bucket, Prefix="bundles/probe").get("Contents")


@pytest.mark.every_store
def test_lifecycle_rules_of_others_are_kept(store: Store, s3: Any, config: Settings) -> None:
    s3.create_bucket(Bucket=config.bucket)
    if "lifecycle rules" in store.lacks:
        assert init_bucket(store, config)[1].startswith("lifecycle: not offered by this store")
        return
    s3.put_bucket_lifecycle_configuration(
        Bucket=config.bucket, LifecycleConfiguration={"Rules": [OTHER_RULE]}
    )
    for retention, days in ((30 * 86_400, 31), (5400, 1)):
        lines = init_bucket(store, Settings(bucket=config.bucket, retention=retention))
        ids = {rule["ID"]: rule["Expiration"]["Days"] for rule in rules(s3, config)}
        assert ids == {OTHER_RULE["ID"]: 3, "message-history-server bundles/": days}
    assert lines[1].startswith(
        "lifecycle: shortened from 31 days; bundles with a later expiry are removed early"
    )


def test_bucket_is_created_in_the_configured_region(
    store: Store, s3: Any, config: Settings
) -> None:
    other_region = replace(store, region="eu-west-3")
    assert init_bucket(other_region, config)[0].endswith("created")
    location = s3.get_bucket_location(Bucket=config.bucket)
    assert location["LocationConstraint"] == "eu-west-3"


def test_bucket_created_by_another_process_at_the_same_time_is_used(
    store: Store, config: Settings
) -> None:
    with Proxy(store.endpoint_url) as proxy:
        proxy.faults.append(Fault("HeadBucket", Respond(404, "NoSuchBucket")))
        init_bucket(store, config)
        proxy.faults.append(Fault("CreateBucket", Respond(409, "BucketAlreadyOwnedByYou")))
        proxied = replace(store, endpoint_url=proxy.url)
        assert init_bucket(proxied, config)[0] == f"bucket {config.bucket}: exists"


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("GetBucketLifecycleConfiguration", "lifecycle: not offered by this store"),
        ("PutBucketLifecycleConfiguration", "lifecycle: not offered by this store"),
        ("PutPublicAccessBlock", "public access: block not offered by this store"),
        ("PutBucketEncryption", "encryption: not offered by this store"),
    ],
)
@pytest.mark.parametrize(
    "response",
    [Respond(501, "NotImplemented"), Respond(405, "MethodNotAllowed")],
    ids=["501", "405"],
)
def test_missing_feature_of_a_store_is_reported_and_skipped(
    store: Store, config: Settings, operation: str, message: str, response: Respond
) -> None:
    with Proxy(store.endpoint_url) as proxy:
        proxied = replace(store, endpoint_url=proxy.url)
        proxy.faults.append(Fault(operation, response, times=None))
        absent = Respond(404, "ServerSideEncryptionConfigurationNotFoundError")
        proxy.faults.append(Fault("GetBucketEncryption", absent, times=None))
        lines = init_bucket(proxied, config)
    assert any(line.startswith(message) and response.code in line for line in lines)
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("operation", "response", "message"),
    [
        ("HeadBucket", Respond(403, "AccessDenied"), "no access to the bucket"),
        ("CreateBucket", Respond(409, "BucketAlreadyExists"), "belongs to another account"),
        ("PutBucketLifecycleConfiguration", Respond(403, "AccessDenied"), "AccessDenied"),
        ("PutPublicAccessBlock", Respond(403, "AccessDenied"), "AccessDenied"),
    ],
)
def test_refused_call_is_reported_with_the_next_step(
    store: Store, config: Settings, operation: str, response: Respond, message: str
) -> None:
    with Proxy(store.endpoint_url) as proxy:
        proxied = replace(store, endpoint_url=proxy.url)
        proxy.faults.append(Fault(operation, response, times=None))
        with pytest.raises(BucketError, match=message):
            init_bucket(proxied, config)


def test_unreachable_store_is_reported(store: Store, config: Settings) -> None:
    with Proxy(store.endpoint_url) as proxy:
        proxy.disable()
        with pytest.raises(
            BucketError, match=r"cannot be reached.*: check AWS_ENDPOINT_URL_S3 and the network\.$"
        ):
            init_bucket(replace(store, endpoint_url=proxy.url), config)


@XDIST_GROUPS["ceph"]
def test_lifecycle_removes_bundles_and_abandoned_uploads(get_store: Callable[[str], Store]) -> None:
    """For the lifecycle of this store, a day takes two seconds."""
    fast_store = get_store("ceph_with_short_days")
    s3 = boto3.client(
        "s3",
        endpoint_url=fast_store.endpoint_url,
        aws_access_key_id=fast_store.access_key,
        aws_secret_access_key=fast_store.secret_key,
        region_name=fast_store.region,
    )
    settings = Settings(bucket=f"history-{uuid4()}", retention=1)
    init_bucket(fast_store, settings)
    with running_service(fast_store, s3, bucket=settings.bucket, retention=1) as service:
        bundle_id = service.upload(b"bundle")
        s3.create_multipart_upload(Bucket=settings.bucket, Key=f"bundles/{uuid4()}")
        s3.put_object(Bucket=settings.bucket, Key="elsewhere", Body=b"kept")
        assert f"bundles/{bundle_id}" in service.objects()
        wait_until(lambda: service.objects() == ["elsewhere"], timeout=60)
        wait_until(lambda: not service.multipart_uploads(), timeout=60)
