"""The bucket's template is what the service asks for."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from service.s3 import bucket, check
from service.s3.client import connect
from service.settings import Settings
from tests.infra.cloudformation import templates
from tests.infra.cloudformation.templates import PAIR, Template
from tests.support.services.thread import make_bucket
from tests.support.stores import Store
from tests.support.stores.access import aws_environment

KEY = "arn:aws:kms:eu-west-3:123456789012:key/1"


@pytest.mark.parametrize(("prefix", "days"), [("bundles/", 7), ("a/b/", 30)])
def test_init_bucket_and_check_find_the_bucket_right(
    store: Store, s3: Any, prefix: str, days: int
) -> None:
    template = Template("bucket", Prefix=prefix, RetentionDays=str(days))
    config = Settings(bucket=f"history-{uuid4()}", prefix=prefix, retention=days * 86_400)
    templates.make_bucket(s3, template, config.bucket)
    assert make_bucket(store, config) == [
        f"bucket {config.bucket}: exists",
        (
            f"lifecycle: unchanged (bundles are removed after {days + 1} days, "
            "abandoned uploads after 1)"
        ),
        "public access: already blocked",
        "encryption: already on",
    ]
    wrong = [finding for finding in look(store, config) if not finding.ok]
    assert not wrong
    # Last, as moto denies without a look at the conditions.
    policy = json.dumps(template.properties("BucketPolicy")["PolicyDocument"])
    s3.put_bucket_policy(Bucket=config.bucket, Policy=policy)
    assert json.loads(s3.get_bucket_policy(Bucket=config.bucket)["Policy"]) == json.loads(policy)


def look(store: Store, config: Settings) -> list[check.Finding]:
    """Do what `check` does."""

    async def findings() -> list[check.Finding]:
        async with connect() as client:
            found = check.check_bucket(
                client, bucket=config.bucket, prefix=config.prefix, retention=config.retention
            )
            return [finding async for finding in found]

    with aws_environment(store):
        return asyncio.run(findings())


def test_a_lifecycle_for_every_retention() -> None:
    allowed = PAIR.source["Parameters"]["RetentionDays"]["AllowedValues"]
    assert allowed == list(PAIR.source["Mappings"]["Lifecycle"])
    for days in allowed:
        template = Template("bucket", RetentionDays=days)
        [rule] = template.properties("Bucket")["LifecycleConfiguration"]["Rules"]
        expected = bucket.lifecycle_rule("bundles/", int(days) * 86_400)
        assert rule["ExpirationInDays"] == expected["Expiration"]["Days"]


@pytest.mark.parametrize(
    "prefix", ["bundles/", "a/b/", "", "/", "a", "a//", ".a/", "a b/", "é/", f"{'a' * 199}/"]
)
def test_a_prefix_that_the_service_takes_is_one_that_the_stack_takes(prefix: str) -> None:
    parameter = PAIR.source["Parameters"]["Prefix"]
    taken = re.fullmatch(parameter["AllowedPattern"], prefix) is not None
    taken = taken and len(prefix) <= parameter["MaxLength"]
    try:
        Settings(bucket="history", prefix=prefix)
    except ValidationError:
        assert not taken
    else:
        assert taken


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
def test_what_the_bucket_policy_denies(
    key: str, action: str, context: dict[str, str], *, denied: bool
) -> None:
    policy = Template("bucket", KeyArn=key).properties("BucketPolicy")["PolicyDocument"]
    assert all(statement["Effect"] == "Deny" for statement in policy["Statement"])
    matching = [
        statement["Sid"]
        for statement in policy["Statement"]
        if statement["Action"] in {action, "s3:*"} and _holds(statement["Condition"], TLS | context)
    ]
    assert bool(matching) is denied, matching


def _holds(condition: Mapping[str, Mapping[str, str]], context: Mapping[str, str]) -> bool:
    """IAM's logic: every operator has to match, and a negated one does where there is no value."""
    operators: dict[str, Callable[[str, str], bool]] = {
        "Bool": lambda key, value: context.get(key) == value,
        "Null": lambda key, value: (key not in context) == (value == "true"),
        "StringNotEquals": lambda key, value: context.get(key) != value,
        "ArnNotEquals": lambda key, value: context.get(key) != value,
    }
    return all(
        operators[name](key, value)
        for name, wanted in condition.items()
        for key, value in wanted.items()
    )
