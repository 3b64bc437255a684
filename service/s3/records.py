"""Where a bundle's record is in S3: in the tags of its object, or in its metadata.

`storage` writes and reads records in this form, `capabilities` tries whether the store keeps them,
and `sweep` reads them. `permissions` tries to read tags.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

from botocore.exceptions import ClientError

from service.s3.calls import error_code

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import GetObjectTaggingOutputTypeDef, TaggingTypeDef

Records = Literal["tags", "metadata"]
"""The values of HISTORY_RECORDS."""

_PREFIX = "history-"
"""The beginning of the names in the metadata: `x-amz-meta-history-expires-at` and so on."""


def record_arguments(fields: Mapping[str, str], records: Records) -> dict[str, Any]:
    """Return the arguments of PutObject that store a record."""
    if records == "tags":
        return {"Tagging": urlencode(fields)}
    return {"Metadata": {f"{_PREFIX}{name}": value for name, value in fields.items()}}


def fields_in_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the record in an object's metadata. Some stores return names in upper case."""
    lower = {name.lower(): value for name, value in metadata.items()}
    return {
        name.removeprefix(_PREFIX): value
        for name, value in lower.items()
        if name.startswith(_PREFIX)
    }


def tag_set(fields: Mapping[str, str]) -> TaggingTypeDef:
    """Return the argument of PutObjectTagging."""
    return {"TagSet": [{"Key": name, "Value": value} for name, value in fields.items()]}


def fields_in_tags(response: GetObjectTaggingOutputTypeDef) -> dict[str, str]:
    """Return the record in a response to GetObjectTagging. Ceph leaves out an empty TagSet."""
    return {tag["Key"]: tag["Value"] for tag in response.get("TagSet", [])}


async def read_tags(call: Awaitable[GetObjectTaggingOutputTypeDef]) -> dict[str, str]:
    """Await a GetObjectTagging, and return the record. Raises botocore's errors.

    If an object has no tags, some stores answer NoSuchTagSet, such as older releases of versitygw.
    """
    try:
        return fields_in_tags(await call)
    except ClientError as error:
        if error_code(error) != "NoSuchTagSet":
            raise
        return {}
