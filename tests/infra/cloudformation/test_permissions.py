"""The task role allows exactly the actions that the code needs."""

import re

from service.s3 import storage
from service.s3.bucket import check, initialization, sweep
from tests.infra.cloudformation import s3_permissions
from tests.infra.cloudformation.templates import BUCKET_TEMPLATE, Template, statements

KEY = "arn:aws:kms:eu-west-3:123456789012:key/1"


def actions(*modules: str) -> set[str]:
    """Return the actions that these modules need together."""
    return {action for module in modules for action in s3_permissions.callers_by_action(module)}


def test_task_role_allows_exactly_the_actions_that_the_code_needs(
    service_template: Template,
) -> None:
    granted = statements(service_template, "TaskRole")
    assert granted.keys() == {"Bundles", "Bucket", "Collector"}
    bundle_actions, bucket_actions = granted["Bundles"], granted["Bucket"]
    assert bundle_actions["Resource"] == "<Bucket.Arn>/bundles/*"
    assert bucket_actions["Resource"] == "<Bucket.Arn>"
    assert s3_permissions.modules_that_call_s3() == {
        "service.s3.storage",
        "service.s3.capabilities",
        "service.s3.bucket.check",
        "service.s3.bucket.initialization",
        "service.s3.bucket.permissions",
        "service.s3.bucket.sweep",
    }
    used = actions("storage", "bucket.check")
    assert used >= actions("capabilities", "bucket.permissions", "bucket.sweep")
    assert {*bundle_actions["Action"], *bucket_actions["Action"]} == used
    assert {action for action in used if "Bucket" in action or "Configuration" in action} <= {
        *bucket_actions["Action"]
    }
    # The service needs no permission for init-bucket, because bucket.yaml creates the bucket.
    assert not {action for action in used if re.match("s3:(Create|Put.*(Bucket|Config))", action)}


def test_every_action_has_a_comment_with_the_calling_functions(service_template: Template) -> None:
    comments = dict(re.findall(r"- (s3:\w+) # (.+)$", service_template.text, flags=re.MULTILINE))
    storage_callers = s3_permissions.callers_by_action("storage")
    check_callers = s3_permissions.callers_by_action("bucket.check")
    assert comments.keys() == storage_callers.keys() | check_callers.keys()
    for action, comment in comments.items():
        in_storage = action in storage_callers
        owner, callers = ("S3Storage", storage_callers) if in_storage else ("check", check_callers)
        assert set(comment.removeprefix(f"{owner}.").split(", ")) == callers[action]


def test_documented_actions_match_the_code() -> None:
    for module, used in (
        (storage, actions("storage", "capabilities")),
        (initialization, actions("bucket.initialization", "capabilities")),
        (check, actions("bucket.check") - actions("storage")),
        (sweep, actions("bucket.sweep")),
    ):
        assert set(re.findall(r"s3:\w+", module.__doc__ or "")) == used


def test_kms_key_is_only_usable_through_s3() -> None:
    template = Template(
        "service", imports=BUCKET_TEMPLATE.exports(), BucketStack="history", KeyArn=KEY
    )
    statement = statements(template, "TaskRole")["Key"]
    assert statement["Resource"] == KEY
    assert set(statement["Action"]) == {"kms:GenerateDataKey", "kms:Decrypt"}
    assert statement["Condition"] == {
        "StringEquals": {"kms:ViaService": "s3.eu-west-3.amazonaws.com"}
    }
