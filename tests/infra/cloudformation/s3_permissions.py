"""The S3 operations that the service calls, and the IAM actions that they need."""

import ast
from collections import defaultdict
from pathlib import Path

import boto3

from tests.support.repository import ROOT, module_name

SERVICE = ROOT / "service"

OPERATIONS: dict[str, str] = boto3.client("s3", region_name="us-east-1").meta.method_to_api_mapping
"""The methods of a boto3 client, and the S3 operations that they call."""

ACTIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateBucket": "s3:CreateBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteBucketEncryption": "s3:PutEncryptionConfiguration",
    "DeleteObject": "s3:DeleteObject",
    "DeletePublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "GetBucketVersioning": "s3:GetBucketVersioning",
    "GetObject": "s3:GetObject",
    "GetObjectTagging": "s3:GetObjectTagging",
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "PutObject": "s3:PutObject",
    "PutObjectTagging": "s3:PutObjectTagging",
    "PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "UploadPart": "s3:PutObject",
}
"""Operations and the actions they need, from AWS's Service Authorization Reference.

Add a line here when the service calls a new operation.
"""


def callers_by_action(module: str) -> dict[str, set[str]]:
    """Return the IAM actions that a module of `service.s3` needs, each with its functions."""
    return _callers_in(SERVICE / "s3" / f"{module.replace('.', '/')}.py")


def modules_that_call_s3() -> set[str]:
    """Return the dotted names of the modules that call S3."""
    return {module_name(path) for path in SERVICE.rglob("*.py") if _callers_in(path)}


def _callers_in(path: Path) -> dict[str, set[str]]:
    callers: dict[str, set[str]] = defaultdict(set)
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                for action in _actions(node):
                    callers[action].add(function.name)
    return callers


def _actions(node: ast.AST) -> set[str]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return set()
    client, method = ast.unparse(node.func.value).split(".")[-1], node.func.attr
    if method == "get_paginator":
        method = ast.literal_eval(node.args[0])
    if client not in {"client", "_client"} or method not in OPERATIONS:
        return set()
    operation = OPERATIONS[method]
    tagged = any(
        keyword.arg == "Tagging" or ast.unparse(keyword.value).startswith("record_arguments(")
        for keyword in node.keywords
    )
    return {ACTIONS[operation]} | ({"s3:PutObjectTagging"} if tagged else set())
