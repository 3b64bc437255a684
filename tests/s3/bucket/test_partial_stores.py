"""Stores that lack something, or accept it and do not keep it: the commands say so, and go on."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner

from service.cli import main
from service.s3 import retries
from service.s3.retries import MAX_ATTEMPTS
from tests.support.proxy import DropElement, Fault, Proxy, ResetRequest, Respond, Truncate
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

NOT_IMPLEMENTED = Respond(501, "NotImplemented")
BROKEN = Respond(500, "InternalError")
ACCEPTED = Respond(200, "")
"""The store responds as if it had done what was asked."""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def bucket() -> str:
    return f"history-{uuid4()}"


@pytest.fixture
def proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that turns moto into a store that lacks something."""
    monkeypatch.setattr(retries, "MAX_BACKOFF", 0.01)
    with Proxy(store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def run(store: Store, proxy: Proxy, bucket: str) -> Run:
    """A function that runs a command. It returns the exit code and the output."""

    def run(command: str, **settings: str) -> tuple[int, str]:
        environment = {"HISTORY_BUCKET": bucket, "HISTORY_LOG_FORMAT": "text", **settings}
        with aws_environment(store, proxy.url):
            result = CliRunner().invoke(main, [command], env=environment)
        return result.exit_code, result.output

    return run


def missing(proxy: Proxy, *operations: str, action: Any = NOT_IMPLEMENTED) -> None:
    """Let the store respond to these operations in this way."""
    proxy.faults += [Fault(operation, action, times=None) for operation in operations]


def test_dropped_abort_rule_is_told_and_is_not_wrong(run: Run, proxy: Proxy) -> None:
    """MinIO does so: it aborts abandoned multipart uploads by itself."""
    missing(
        proxy,
        "PutBucketLifecycleConfiguration",
        action=DropElement("AbortIncompleteMultipartUpload"),
    )
    for outcome in ("set", "unchanged"):
        exit_code, output = run("init-bucket")
        assert exit_code == 0
        assert f"lifecycle: {outcome} (bundles are removed after 8 days; this store does" in output
        assert "unless it removes abandoned uploads by itself, run message-history-server" in output
    exit_code, output = run("check")
    assert (exit_code, "WRONG" in output) == (0, False), output


def test_dropped_lifecycle_rule_is_told(run: Run, proxy: Proxy) -> None:
    missing(proxy, "PutBucketLifecycleConfiguration", action=ACCEPTED)
    exit_code, output = run("init-bucket")
    assert exit_code == 0
    assert "lifecycle: this store does not keep the rule; nothing removes expired bundles" in output
    exit_code, output = run("check")
    assert exit_code == 1
    assert "WRONG lifecycle: no rule removes the objects under bundles/" in output
    assert "if this store does not keep the rule, run message-history-server sweep" in output


def test_store_without_configuration_works(run: Run, proxy: Proxy) -> None:
    """Everything but the objects themselves is 501."""
    missing(
        proxy,
        *("GetBucketLifecycleConfiguration", "PutBucketLifecycleConfiguration"),
        *("GetPublicAccessBlock", "PutPublicAccessBlock"),
        *("GetBucketEncryption", "PutBucketEncryption", "GetBucketVersioning"),
    )
    exit_code, output = run("init-bucket")
    assert exit_code == 0
    assert "lifecycle: not offered by this store; nothing removes expired bundles: run" in output
    assert "public access: block not offered by this store; keep the bucket's ACLs" in output
    assert "encryption: not offered by this store; clients encrypt their bundles anyway" in output
    exit_code, output = run("check")
    assert (exit_code, "WRONG" in output) == (0, False), output
    assert "lifecycle: not offered by this store (NotImplemented); run message-history" in output


def test_encryption_that_stops_writing_is_undone(
    run: Run, proxy: Proxy, s3: Any, bucket: str
) -> None:
    """SeaweedFS without keys for encryption does so."""

    def is_encrypted() -> bool:
        try:
            s3.get_bucket_encryption(Bucket=bucket)
        except ClientError:
            return False
        return True

    s3.create_bucket(Bucket=bucket)
    s3.delete_bucket_encryption(Bucket=bucket)
    proxy.faults.append(Fault("PutObject", BROKEN, times=None, condition=is_encrypted))
    exit_code, output = run("init-bucket")
    assert exit_code == 0
    assert "encryption: not possible on this store, which then refuses uploads" in output
    assert not is_encrypted()
    exit_code, output = run("check")
    assert (exit_code, "WRONG" in output) == (0, False), output

    s3.put_bucket_encryption(
        Bucket=bucket,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        },
    )
    exit_code, output = run("init-bucket")
    assert exit_code == 1
    assert "encryption: already on" in output
    assert "This store fails to write an object (InternalError): check its health and" in output
    exit_code, output = run("check")
    assert exit_code == 1
    assert "WRONG s3:PutObject: fails in this store (InternalError)" in output
    assert "check the health and the configuration of this store, such as its encry" in output
    assert "credentials' policies" not in output


def test_dropped_encryption_is_told(run: Run, proxy: Proxy) -> None:
    absent = Respond(404, "ServerSideEncryptionConfigurationNotFoundError")
    missing(proxy, "GetBucketEncryption", action=absent)
    missing(proxy, "PutBucketEncryption", action=ACCEPTED)
    exit_code, output = run("init-bucket")
    assert exit_code == 0
    assert "encryption: this store does not keep it; clients encrypt their bundles" in output


def test_invalid_credentials_are_not_called_a_feature_that_the_store_lacks(
    run: Run, proxy: Proxy
) -> None:
    assert run("init-bucket")[0] == 0
    denied = Respond(401, "InvalidToken")
    missing(proxy, "GetBucketLifecycleConfiguration", action=denied)
    exit_code, output = run("init-bucket")
    assert (exit_code, "not offered" in output) == (1, False)
    assert "InvalidToken" in output
    exit_code, output = run("check")
    assert exit_code == 1
    assert "WRONG lifecycle: reading is denied (InvalidToken)\n      → allow these" in output


def test_public_access_block_that_stops_writing_is_undone(
    run: Run, proxy: Proxy, s3: Any, bucket: str
) -> None:
    def is_blocked() -> bool:
        try:
            s3.get_public_access_block(Bucket=bucket)
        except ClientError:
            return False
        return True

    refusal = Respond(403, "AccessDenied")
    proxy.faults.append(Fault("PutObject", refusal, times=None, condition=is_blocked))
    exit_code, output = run("init-bucket")
    assert exit_code == 0
    assert "public access: not blocked, as this store then refuses uploads; keep the bu" in output
    assert not is_blocked()


def test_dropped_public_access_block_is_told(run: Run, proxy: Proxy) -> None:
    missing(proxy, "PutPublicAccessBlock", action=ACCEPTED)
    exit_code, output = run("init-bucket")
    assert exit_code == 0
    assert "public access: this store does not keep the block; keep the bucket's ACLs" in output


def test_store_without_tags_needs_another_setting(run: Run, proxy: Proxy) -> None:
    """The remedy that `init-bucket` and `check` name works when it is followed."""
    missing(proxy, "GetObjectTagging", "PutObjectTagging")
    exit_code, output = run("init-bucket")
    assert exit_code == 1
    assert output.splitlines()[-1].startswith("Error: this store does not keep object tags, so no")
    assert "set HISTORY_RECORDS=metadata" in output
    exit_code, output = run("check")
    assert exit_code == 1
    assert "WRONG s3:PutObjectTagging: not offered by this store (NotImplemented)" in output
    assert "HISTORY_RECORDS=metadata" in output
    assert "policies" not in output
    for command in ("init-bucket", "check"):
        exit_code, output = run(command, HISTORY_RECORDS="metadata")
        assert (exit_code, "WRONG" in output) == (0, False), output
        assert "records: kept in metadata" in output
        assert "does not keep tags at PutObject" in output


def test_failing_store_is_blamed_and_not_the_credentials(
    run: Run, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("init-bucket")[0] == 0
    proxy.faults.append(Fault("GetObject", BROKEN, times=MAX_ATTEMPTS))
    exit_code, output = run("check")
    assert exit_code == 1
    assert "WRONG s3:GetObject: fails in this store (InternalError)" in output
    proxy.faults.append(Fault("GetObject", Respond(403, "AccessDenied"), times=1))
    exit_code, output = run("check")
    assert "WRONG s3:GetObject: denied (AccessDenied)\n      → allow it on" in output


FAILURES: dict[str, dict[str, Any]] = {
    "region": {"operation": "HeadBucket", "action": ResetRequest()},
    "s3:GetObjectTagging": {"operation": "GetObjectTagging", "action": ResetRequest()},
    "s3:GetObject": {"operation": "GetObject", "action": Truncate(after_bytes=2)},
    "records": {"operation": "PutObject", "action": ResetRequest(), "after": 1},
    "lifecycle": {"operation": "GetBucketLifecycleConfiguration", "action": ResetRequest()},
    "public access": {"operation": "GetPublicAccessBlock", "action": ResetRequest()},
    "versioning": {"operation": "GetBucketVersioning", "action": ResetRequest()},
}


@pytest.mark.parametrize("subject", FAILURES)
def test_store_that_stops_responding_is_reported(run: Run, proxy: Proxy, subject: str) -> None:
    """`check` goes on with what it can still check."""
    run("init-bucket")
    proxy.faults.append(Fault(**FAILURES[subject], times=None))
    exit_code, output = run("check")
    assert exit_code == 1
    assert f"WRONG {subject}: the store does not respond (" in output
    assert "→ check the health of this store and the network" in output
    assert output.count("WRONG") == 1
    assert " versioning: " in output


def test_broken_response_to_the_first_call_is_reported(run: Run, proxy: Proxy) -> None:
    run("init-bucket")
    proxy.faults.append(Fault("ListObjectsV2", Truncate(after_bytes=5), times=None))
    exit_code, output = run("check")
    assert exit_code == 1
    assert "WRONG endpoint: " in output
    assert "→ check AWS_ENDPOINT_URL_S3 and the network" in output
