"""The template of the bucket matches the needs of the service."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from service.s3.bucket import check, initialization
from service.s3.bucket.findings import Finding
from service.s3.client import connect
from service.settings import Settings
from tests.infra.cloudformation import templates
from tests.infra.cloudformation.templates import BUCKET_TEMPLATE, Template
from tests.support.services.thread import init_bucket
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

KEY = "arn:aws:kms:eu-west-3:123456789012:key/1"


@pytest.mark.parametrize(("prefix", "days"), [("bundles/", 7), ("a/b/", 30)])
def test_init_bucket_and_check_accept_the_bucket(
    store: Store, s3: Any, prefix: str, days: int
) -> None:
    template = Template("bucket", Prefix=prefix, RetentionDays=str(days))
    config = Settings(bucket=f"history-{uuid4()}", prefix=prefix, retention=days * 86_400)
    templates.make_bucket(s3, template, config.bucket)
    *lines, _ = init_bucket(store, config)
    assert lines == [
        f"bucket {config.bucket}: exists",
        (
            f"lifecycle: unchanged (bundles are removed after {days + 1} days, "
            "abandoned uploads after 1)"
        ),
        "public access: already blocked",
        "encryption: already on",
        "records: kept in tags",
    ]
    problems = [finding for finding in check_findings(store, config) if not finding.ok]
    assert not problems
    # The policy comes last, because moto ignores its conditions and denies everything.
    policy = json.dumps(template.properties("BucketPolicy")["PolicyDocument"])
    s3.put_bucket_policy(Bucket=config.bucket, Policy=policy)
    assert json.loads(s3.get_bucket_policy(Bucket=config.bucket)["Policy"]) == json.loads(policy)


def check_findings(store: Store, config: Settings) -> list[Finding]:
    """Return the findings of the `check` command."""

    async def findings() -> list[Finding]:
        async with connect() as client:
            checks = check.check_bucket(
                client,
                bucket=config.bucket,
                prefix=config.prefix,
                retention=config.retention,
                records=config.records,
            )
            return [finding async for finding in checks]

    with aws_environment(store):
        return asyncio.run(findings())


def test_lifecycle_matches_every_allowed_retention(service_template: Template) -> None:
    allowed = BUCKET_TEMPLATE.source["Parameters"]["RetentionDays"]["AllowedValues"]
    assert allowed == list(BUCKET_TEMPLATE.source["Mappings"]["Lifecycle"])
    of_both = [
        {**template.source["Parameters"]["RetentionDays"], "Description": ""}
        for template in (BUCKET_TEMPLATE, service_template)
    ]
    assert of_both[0] == of_both[1]
    for days in allowed:
        template = Template("bucket", RetentionDays=days)
        [rule] = template.properties("Bucket")["LifecycleConfiguration"]["Rules"]
        expected = initialization.lifecycle_rule("bundles/", int(days) * 86_400)
        assert rule["ExpirationInDays"] == expected["Expiration"]["Days"]


@pytest.mark.parametrize(
    "prefix", ["bundles/", "a/b/", "", "/", "a", "a//", ".a/", "a b/", "é/", f"{'a' * 199}/"]
)
def test_template_and_service_accept_the_same_prefixes(prefix: str) -> None:
    parameter = BUCKET_TEMPLATE.source["Parameters"]["Prefix"]
    accepted = re.fullmatch(parameter["AllowedPattern"], prefix) is not None
    accepted = accepted and len(prefix) <= parameter["MaxLength"]
    try:
        Settings(bucket="history", prefix=prefix)
    except ValidationError:
        assert not accepted
    else:
        assert accepted


TLS = {"aws:SecureTransport": "true"}
SSE = "s3:x-amz-server-side-encryption"


@pytest.mark.parametrize(
    ("key", "action", "context", "denied"),
    [
        ("", "s3:GetObject", {}, False),
        ("", "s3:GetObject", {"aws:SecureTransport": "false"}, True),
        ("", "s3:PutObject", {}, False),
        ("", "s3:PutObject", {SSE: "AES256"}, False),
        ("", "s3:PutObject", {SSE: "aws:kms"}, True),
        ("", "s3:PutObject", {f"{SSE}-customer-algorithm": "AES256"}, True),
        (KEY, "s3:PutObject", {}, False),
        (KEY, "s3:PutObject", {SSE: "AES256"}, True),
        (KEY, "s3:PutObject", {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": KEY}, False),
        (KEY, "s3:PutObject", {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": KEY + "2"}, True),
    ],
)
def test_bucket_policy_denies_plain_http_and_wrong_encryption(
    key: str, action: str, context: dict[str, str], *, denied: bool
) -> None:
    policy = Template("bucket", KeyArn=key).properties("BucketPolicy")["PolicyDocument"]
    assert all(statement["Effect"] == "Deny" for statement in policy["Statement"])
    matching = [
        statement["Sid"]
        for statement in policy["Statement"]
        if statement["Action"] in {action, "s3:*"}
        and _matches(statement["Condition"], TLS | context)
    ]
    assert bool(matching) is denied, matching


def _matches(condition: Mapping[str, Mapping[str, str]], context: Mapping[str, str]) -> bool:
    """Evaluate a condition as IAM does.

    Every operator has to match. A negated operator also matches if the context has no value.
    """
    operators: dict[str, Callable[[str, str], bool]] = {
        "Bool": lambda key, value: context.get(key) == value,
        "Null": lambda key, value: (key not in context) == (value == "true"),
        "StringNotEquals": lambda key, value: context.get(key) != value,
        "ArnNotEquals": lambda key, value: context.get(key) != value,
    }
    return all(
        operators[name](key, value)
        for name, expected in condition.items()
        for key, value in expected.items()
    )
