"""The buckets of the tests and their contents."""

from typing import Any
from uuid import uuid4


def new_bucket(s3: Any) -> str:
    """Create an empty bucket. Return its name."""
    name = f"history-{uuid4()}"
    s3.create_bucket(Bucket=name)
    return name


def object_keys(s3: Any, bucket: str) -> list[str]:
    listing = s3.list_objects_v2(Bucket=bucket)
    return [entry["Key"] for entry in listing.get("Contents", [])]


def multipart_upload_keys(s3: Any, bucket: str) -> list[str]:
    """Return the keys of the multipart uploads that are neither completed nor aborted."""
    listing = s3.list_multipart_uploads(Bucket=bucket)
    return [upload["Key"] for upload in listing.get("Uploads", [])]


def stored_bundles(s3: Any, bucket: str) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return the body and the tags of every object, by the bundle's id."""
    bundles = {}
    for key in object_keys(s3, bucket):
        location = {"Bucket": bucket, "Key": key}
        tags = {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(**location)["TagSet"]}
        body = s3.get_object(**location)["Body"].read()
        bundles[key.rsplit("/", 1)[1]] = (body, tags)
    return bundles
