"""`check` names what is wrong with a bucket, and what to do; it leaves nothing behind."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from service.cli import main
from service.s3 import retries
from service.s3.check import Finding, check_bucket
from service.s3.client import connect
from service.settings import Settings
from tests.support.services.thread import make_bucket
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

pytestmark = pytest.mark.every_store

LENIENT = {"moto", "localstack"}
"""They check neither credentials nor policies."""


@pytest.fixture
def bucket(store: Store, s3: Any) -> Iterator[str]:
    """A bucket as `init-bucket` makes it; whatever a test does to it, it is empty afterwards."""
    name = f"history-{uuid4()}"
    make_bucket(store, Settings(bucket=name))
    yield name
    s3.delete_bucket_policy(Bucket=name)
    assert "Contents" not in s3.list_objects_v2(Bucket=name)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=name)


def wrong(store: Store, bucket: str, ahead: float = 0, **variables: str) -> dict[str, Finding]:
    """What is found to be wrong, by its subject; each of it comes with a remedy."""

    async def findings() -> list[Finding]:
        async with connect() as s3:
            found = check_bucket(
                s3,
                bucket=bucket,
                prefix="bundles/",
                retention=7 * 86_400,
                clock=lambda: time.time() + ahead,
            )
            return [finding async for finding in found]

    with aws_environment(store), pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "MAX_BACKOFF", 0.1)
        for name, value in variables.items():
            patch.setenv(name, value)
        return {finding.subject: finding for finding in asyncio.run(findings()) if not finding.ok}


def test_what_init_bucket_made_is_right(store: Store, bucket: str) -> None:
    assert not wrong(store, bucket)


def only(findings: dict[str, Finding], subject: str) -> str:
    """What is said of the one thing that is wrong."""
    [finding] = findings.values()
    assert finding.subject == subject
    return f"{finding.message} → {finding.remedy}"


def test_no_endpoint(store: Store, bucket: str) -> None:
    said = only(wrong(store, bucket, AWS_ENDPOINT_URL_S3="http://127.0.0.1:9"), "endpoint")
    assert said.startswith("http://127.0.0.1:9 cannot be reached")


def test_no_bucket(store: Store, bucket: str) -> None:
    assert "init-bucket" in only(wrong(store, "no-such-bucket"), "bucket")


def test_a_wrong_region(store: Store, bucket: str) -> None:
    found = wrong(store, bucket, AWS_DEFAULT_REGION="eu-west-1")
    if store.name == "ceph":  # It takes any.
        assert not found
    else:
        assert f"set AWS_DEFAULT_REGION={store.region}" in only(found, "region")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
    ],
)
def test_wrong_credentials(store: Store, bucket: str, name: str, code: str) -> None:
    found = wrong(store, bucket, 0, **{name: "wrong"})
    if store.name in LENIENT:
        assert not found
    else:
        assert f"refused ({code})" in only(found, "credentials")


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_clock_that_is_off(store: Store, bucket: str, ahead: float) -> None:
    said = only(wrong(store, bucket, ahead=ahead), "clock")
    assert ("behind" if ahead < 0 else "ahead of") in said


@pytest.mark.parametrize("action", ["PutObjectTagging", "GetObjectTagging", "GetObject"])
def test_a_missing_permission(store: Store, s3: Any, bucket: str, action: str) -> None:
    denial = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": f"s3:{action}",
                "Resource": f"arn:aws:s3:::{bucket}/*",
            }
        ],
    }
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(denial))
    found = wrong(store, bucket)
    if store.name in LENIENT:  # moto denies some actions, and some along with others.
        assert all(subject.startswith("s3:Get") for subject in found)
    else:
        assert "denied (AccessDenied) → allow it" in only(found, f"s3:{action}")


def rule(**changes: object) -> dict[str, object]:
    return {
        "ID": "a rule",
        "Status": "Enabled",
        "Filter": {"Prefix": "bundles/"},
        "Expiration": {"Days": 8},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    } | changes


NO_EXPIRATION = {name: value for name, value in rule().items() if name != "Expiration"}
NO_ABORT = {
    name: value for name, value in rule().items() if name != "AbortIncompleteMultipartUpload"
}
RULES = {
    "none": ([], "no rule removes the objects under bundles/"),
    "too short": ([rule(Expiration={"Days": 7})], "after 7 days, but have to be kept for 7"),
    "too short, for all": (
        [rule(), rule(ID="another", Filter={"Prefix": ""}, Expiration={"Days": 1})],
        "after 1 days, but have to be kept for 7",
    ),
    "too short, for some": (
        [rule(), rule(ID="another", Filter={"Prefix": "bundles/0"}, Expiration={"Days": 1})],
        "removed after 1 days",
    ),
    "turned off": ([rule(Status="Disabled")], "no rule removes"),
    "elsewhere": ([rule(Filter={"Prefix": "others/"})], "no rule removes"),
    "no expiration": ([NO_EXPIRATION], "no rule removes"),
    "no abort": ([NO_ABORT], "no rule aborts abandoned multipart uploads"),
    "right": ([rule()], None),
    "right, for all": ([rule(Filter={"Prefix": ""})], None),
}


@pytest.mark.parametrize("name", RULES)
def test_a_lifecycle(store: Store, s3: Any, bucket: str, name: str) -> None:
    rules, words = RULES[name]
    s3.delete_bucket_lifecycle(Bucket=bucket)
    if rules:
        s3.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": rules}
        )
    found = wrong(store, bucket)
    if words is None:
        assert not found
    else:
        assert words in only(found, "lifecycle")


def test_public_access(store: Store, s3: Any, bucket: str) -> None:
    s3.delete_public_access_block(Bucket=bucket)
    assert "run init-bucket" in only(wrong(store, bucket), "public access")


def test_versioning(store: Store, s3: Any, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "suspend it" in only(wrong(store, bucket), "versioning")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert not wrong(store, bucket)


def test_the_command(store: Store, s3: Any, bucket: str) -> None:
    def check(*options: str) -> tuple[int, str]:
        with aws_environment(store):
            environment = {"HISTORY_BUCKET": bucket, "HISTORY_LOG_FORMAT": "text"}
            ended = CliRunner().invoke(main, ["check", *options], env=environment)
        return ended.exit_code, ended.stdout

    code, said = check()
    assert code == 0
    assert "WRONG" not in said
    assert f"ok    bucket: {bucket} exists\n" in said
    s3.delete_bucket_lifecycle(Bucket=bucket)
    code, said = check()
    assert code == 1
    assert (
        "WRONG lifecycle: no rule removes the objects under bundles/\n      → run init-bucket"
        in said
    )
    wrong = "WRONG lifecycle: no rule removes the objects under bundles/\n      → run init-bucket"
    assert wrong in said
    code, said = check("--json")
    assert code == 1
    [found] = [finding for finding in json.loads(said) if not finding["ok"]]
    assert found.keys() == {"ok", "subject", "message", "remedy"}
    assert found["subject"] == "lifecycle"
