"""Tasks may do what the code does, and no more."""

import re

from service.s3 import bucket, check, storage
from tests.infra.cloudformation import s3_permissions
from tests.infra.cloudformation.templates import PAIR, Template, statements

KEY = "arn:aws:kms:eu-west-3:123456789012:key/1"


def test_the_task_may_do_what_the_code_does_and_no_more(service_template: Template) -> None:
    granted = statements(service_template, "TaskRole")
    assert granted.keys() == {"Bundles", "Bucket", "Collector"}
    on_bundles, on_bucket = granted["Bundles"], granted["Bucket"]
    assert on_bundles["Resource"] == "<Bucket.Arn>/bundles/*"
    assert on_bucket["Resource"] == "<Bucket.Arn>"
    assert s3_permissions.modules() == {
        "service.s3.storage",
        "service.s3.check",
        "service.s3.bucket",
    }
    used = s3_permissions.callers("storage").keys() | s3_permissions.callers("check").keys()
    assert {*on_bundles["Action"], *on_bucket["Action"]} == used
    assert {action for action in used if "Bucket" in action or "Configuration" in action} <= {
        *on_bucket["Action"]
    }
    # init-bucket's work is done by bucket.yaml.
    assert not {action for action in used if re.match("s3:(Create|Put.*(Bucket|Config))", action)}


def test_every_action_names_its_callers(service_template: Template) -> None:
    named = dict(re.findall(r"- (s3:\w+) # (.+)$", service_template.text, flags=re.MULTILINE))
    by_storage, by_check = s3_permissions.callers("storage"), s3_permissions.callers("check")
    assert named.keys() == by_storage.keys() | by_check.keys()
    for action, comment in named.items():
        owner, by = ("S3Storage", by_storage) if action in by_storage else ("check", by_check)
        assert set(comment.removeprefix(f"{owner}.").split(", ")) == by[action]


def test_the_documented_actions_are_those_of_the_code() -> None:
    for module in (storage, bucket):
        documented = set(re.findall(r"s3:\w+", module.__doc__ or ""))
        assert documented == s3_permissions.callers(module.__name__.split(".")[-1]).keys()
    only_check = s3_permissions.callers("check").keys() - s3_permissions.callers("storage").keys()
    assert set(re.findall(r"s3:\w+", check.__doc__ or "")) == only_check


def test_a_key_is_used_through_s3_alone() -> None:
    template = Template("service", imports=PAIR.exports(), BucketStack="history", KeyArn=KEY)
    statement = statements(template, "TaskRole")["Key"]
    assert statement["Resource"] == KEY
    assert set(statement["Action"]) == {"kms:GenerateDataKey", "kms:Decrypt"}
    assert statement["Condition"] == {
        "StringEquals": {"kms:ViaService": "s3.eu-west-3.amazonaws.com"}
    }
