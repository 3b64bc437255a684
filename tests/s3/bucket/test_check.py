"""The `check` command: reports problems of a bucket with a remedy, and leaves nothing in it."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner

from service.cli import main
from service.s3 import retries
from service.s3.bucket.check import check_bucket, check_rules
from service.s3.bucket.findings import Finding
from service.s3.client import connect
from service.settings import Settings
from tests.support.services.thread import init_bucket
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

pytestmark = pytest.mark.every_store


@pytest.fixture
def bucket(store: Store, s3: Any) -> Iterator[str]:
    """A bucket that `init-bucket` created. It must be empty at the end of every test."""
    name = f"history-{uuid4()}"
    init_bucket(store, Settings(bucket=name))
    yield name
    with suppress(ClientError):
        s3.delete_bucket_policy(Bucket=name)
    assert "Contents" not in s3.list_objects_v2(Bucket=name)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=name)


def problems(store: Store, bucket: str, skew: float = 0, **variables: str) -> dict[str, Finding]:
    """Check the bucket; return the problems by subject.

    `skew` is how many seconds this machine's clock is ahead, `variables` are for the environment.
    """

    async def findings() -> list[Finding]:
        async with connect() as s3:
            checks = check_bucket(
                s3,
                bucket=bucket,
                prefix="bundles/",
                retention=7 * 86_400,
                records=store.records,
                clock=lambda: time.time() + skew,
            )
            return [finding async for finding in checks]

    with aws_environment(store), pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "MAX_BACKOFF", 0.1)
        for name, value in variables.items():
            patch.setenv(name, value)
        return {finding.subject: finding for finding in asyncio.run(findings()) if not finding.ok}


def test_bucket_created_by_init_bucket_has_no_problems(store: Store, bucket: str) -> None:
    assert not problems(store, bucket)


def message_of_only(findings: dict[str, Finding], subject: str) -> str:
    """Return message and remedy of the only problem, which has to be about this subject."""
    [finding] = findings.values()
    assert finding.subject == subject
    return f"{finding.message} → {finding.remedy}"


def test_unreachable_endpoint_is_reported(store: Store, bucket: str) -> None:
    findings = problems(store, bucket, AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    message = message_of_only(findings, "endpoint")
    assert message.startswith("http://127.0.0.1:9 cannot be reached")


def test_missing_bucket_is_reported(store: Store, bucket: str) -> None:
    assert "init-bucket" in message_of_only(problems(store, "no-such-bucket"), "bucket")


def test_wrong_region_is_reported(store: Store, bucket: str) -> None:
    findings = problems(store, bucket, AWS_DEFAULT_REGION="eu-west-1")
    if "region" in store.lacks:
        assert not findings
    else:
        assert f"set AWS_DEFAULT_REGION={store.region}" in message_of_only(findings, "region")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
    ],
)
def test_wrong_credentials_are_reported(store: Store, bucket: str, name: str, code: str) -> None:
    findings = problems(store, bucket, 0, **{name: "wrong"})
    if "credentials" in store.lacks:
        assert not findings
    elif "error codes" in store.lacks:
        message = message_of_only(findings, "s3:ListBucket")
        assert message == "denied (AccessDenied) → allow it for these credentials, or use others"
    else:
        if store.name == "versitygw" and code == "InvalidAccessKeyId":
            code = "XAdminUserNotFound"
        assert f"refused ({code})" in message_of_only(findings, "credentials")


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_wrong_clock_is_reported(store: Store, bucket: str, skew: float) -> None:
    message = message_of_only(problems(store, bucket, skew=skew), "clock")
    assert ("behind" if skew < 0 else "ahead of") in message


@pytest.mark.parametrize("action", ["PutObjectTagging", "GetObjectTagging", "GetObject"])
def test_missing_permission_is_reported(store: Store, s3: Any, bucket: str, action: str) -> None:
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
    with suppress(ClientError):
        s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(denial))
    findings = problems(store, bucket)
    if "policies" in store.lacks:  # moto denies some actions, and others together with them.
        assert all(subject.startswith("s3:Get") for subject in findings)
    else:
        if "separate actions" in store.lacks:
            findings = {f"s3:{action}": findings[f"s3:{action}"]}
        assert "denied (AccessDenied) → allow it" in message_of_only(findings, f"s3:{action}")


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
    "no rule": ([], "no rule removes the objects under bundles/"),
    "too short": ([rule(Expiration={"Days": 7})], "after 7 days, but have to be kept for 7"),
    "too short for all objects": (
        [rule(), rule(ID="another", Filter={"Prefix": ""}, Expiration={"Days": 1})],
        "after 1 days, but have to be kept for 7",
    ),
    "too short for some objects": (
        [rule(), rule(ID="another", Filter={"Prefix": "bundles/0"}, Expiration={"Days": 1})],
        "removed after 1 days",
    ),
    "turned off": ([rule(Status="Disabled")], "no rule removes"),
    "another prefix": ([rule(Filter={"Prefix": "others/"})], "no rule removes"),
    "no expiration": ([NO_EXPIRATION], "no rule removes"),
    "no abort": ([NO_ABORT], "no rule aborts abandoned multipart uploads"),
    "right": ([rule()], None),
    "right for all objects": ([rule(Filter={"Prefix": ""})], None),
}


@pytest.mark.parametrize("name", RULES)
def test_lifecycle_problems_are_reported(store: Store, s3: Any, bucket: str, name: str) -> None:
    rules, expected = RULES[name]
    if "lifecycle rules" in store.lacks:
        expected = None
    elif "abort rule" in store.lacks and name == "no expiration":
        return  # This store refuses a rule without any action.
    else:
        if "abort rule" in store.lacks:
            expected = expected or RULES["no abort"][1]
        s3.delete_bucket_lifecycle(Bucket=bucket)
    if rules and "lifecycle rules" not in store.lacks:
        s3.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": rules}
        )
    findings = problems(store, bucket)
    if expected is None:
        assert not findings
    else:
        assert expected in message_of_only(findings, "lifecycle")


EARLY = {"Expiration": {"Days": 1}}
TAG = {"Key": "temporary", "Value": "1"}
TAGS_NOTE = (
    "bundles are removed after 8 days; the rule another removes objects with its tags after 1 "
    "days, so do not add these tags to bundles"
)
SIZES_PROBLEM = (
    "the rule another removes bundles of some sizes after 1 days: it has to keep them for 8 days"
)
DATE_PROBLEM = (
    "the rule another removes bundles from a date on, however new they are: it has to keep them "
    "for 8 days"
)
OTHER_RULES: dict[str, tuple[dict[str, object], str]] = {
    "delete markers": (
        {"Filter": {}, "Expiration": {"ExpiredObjectDeleteMarker": True}},
        "bundles are removed after 8 days",
    ),
    "a date": ({"Filter": {}, "Expiration": {"Date": 0}}, DATE_PROBLEM),
    "a date and another prefix": (
        {"Filter": {"Prefix": "others/"}, "Expiration": {"Date": 0}},
        "bundles are removed after 8 days",
    ),
    "a date and a tag": (
        {"Filter": {"Tag": TAG}, "Expiration": {"Date": 0}},
        "bundles are removed after 8 days",
    ),
    "a tag": ({**EARLY, "Filter": {"Tag": TAG}}, TAGS_NOTE),
    "tags and a prefix": (
        {**EARLY, "Filter": {"And": {"Prefix": "bundles/", "Tags": [TAG]}}},
        TAGS_NOTE,
    ),
    "tags of other objects": (
        {**EARLY, "Filter": {"And": {"Prefix": "others/", "Tags": [TAG]}}},
        "bundles are removed after 8 days",
    ),
    "a tag, but not early": ({"Filter": {"Tag": TAG}}, "bundles are removed after 8 days"),
    "small": ({**EARLY, "Filter": {"ObjectSizeLessThan": 1000}}, SIZES_PROBLEM),
    "large": (
        {**EARLY, "Filter": {"And": {"Prefix": "bundles/", "ObjectSizeGreaterThan": 1000}}},
        SIZES_PROBLEM,
    ),
    "a tag and a size": (
        {**EARLY, "Filter": {"And": {"Tags": [TAG], "ObjectSizeGreaterThan": 1000}}},
        TAGS_NOTE,
    ),
}


@pytest.mark.parametrize("name", OTHER_RULES)
def test_rule_for_some_objects_beside_the_right_one(name: str) -> None:
    """Not every store keeps all of these filters, so the rules do not come from a store."""
    changes, expected = OTHER_RULES[name]
    rules: Any = [rule(), rule(ID="another", **changes)]
    for ordered in (rules, rules[::-1]):
        finding = check_rules(ordered, "bundles/", 7 * 86_400)
        assert finding.message == expected
        assert finding.ok == (expected not in {SIZES_PROBLEM, DATE_PROBLEM})


@pytest.mark.parametrize("name", OTHER_RULES)
def test_rule_for_some_objects_does_not_remove_all_bundles(name: str) -> None:
    changes, _ = OTHER_RULES[name]
    expiration = {"Expiration": {"Days": 30}} if changes.get("Expiration") == {"Days": 1} else {}
    rules: Any = [rule(**changes | expiration)]
    finding = check_rules(rules, "bundles/", 7 * 86_400)
    assert finding.message == "no rule removes the objects under bundles/"
    assert not finding.ok


def test_missing_public_access_block_is_reported(store: Store, s3: Any, bucket: str) -> None:
    if "public access block" in store.lacks:
        assert not problems(store, bucket)
        return
    s3.delete_public_access_block(Bucket=bucket)
    assert "run init-bucket" in message_of_only(problems(store, bucket), "public access")


def test_enabled_versioning_is_reported(store: Store, s3: Any, bucket: str) -> None:
    if "versioning" in store.lacks:
        assert not problems(store, bucket)
        return
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "suspend it" in message_of_only(problems(store, bucket), "versioning")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert not problems(store, bucket)


def test_command_reports_problems_as_text_and_as_json(store: Store, s3: Any, bucket: str) -> None:
    def check(*options: str) -> tuple[int, str]:
        with aws_environment(store):
            environment = {
                "HISTORY_BUCKET": bucket,
                "HISTORY_RECORDS": store.records,
                "HISTORY_LOG_FORMAT": "text",
            }
            result = CliRunner().invoke(main, ["check", *options], env=environment)
        return result.exit_code, result.stdout

    exit_code, output = check()
    assert exit_code == 0
    assert "WRONG" not in output
    assert f"ok    bucket: {bucket} exists\n" in output
    if "lifecycle rules" in store.lacks:
        assert "ok    lifecycle: not offered by this store" in output
        assert "run message-history-server sweep regularly" in output
        return
    s3.delete_bucket_lifecycle(Bucket=bucket)
    exit_code, output = check()
    assert exit_code == 1
    assert (
        "WRONG lifecycle: no rule removes the objects under bundles/\n      → run init-bucket"
        in output
    )
    exit_code, output = check("--json")
    assert exit_code == 1
    [problem] = [finding for finding in json.loads(output) if not finding["ok"]]
    assert problem.keys() == {"ok", "subject", "message", "remedy"}
    assert problem["subject"] == "lifecycle"
