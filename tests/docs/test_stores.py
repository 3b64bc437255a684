"""The table of stores in docs/stores.md says what the tests found out about each store."""

import re

import pytest

from tests.support import stores
from tests.support.repository import ROOT
from tests.support.stores.selection import STORES

PAGE = (ROOT / "docs" / "stores.md").read_text()
VERSIONS = (ROOT / "requirements" / "stores.mk").read_text()


def rows() -> dict[str, dict[str, str]]:
    """Return the rows of the table by the first word of the store's name, in lower case."""
    header, *lines = re.findall(r"^\| (.*) \|$", PAGE.partition("## Records")[0], re.MULTILINE)
    names = header.split(" | ")
    cells = [
        dict(zip(names, line.split(" | "), strict=True)) for line in lines if "---" not in line
    ]
    return {re.split("[ ,]", row["store"])[0].lower(): row for row in cells}


def test_every_store_of_the_tests_is_in_the_table() -> None:
    tested = {name.removesuffix("_metadata") for name in STORES}
    assert rows().keys() - {"aws"} == tested


def test_versions_are_those_that_make_stores_builds() -> None:
    for name in ("minio", "versitygw", "seaweedfs", "garage"):
        version = rows()[name]["version"]
        [pinned] = re.findall(rf"^{name.upper()} := .*@v?(.*)$", VERSIONS, re.MULTILINE)
        assert version in pinned or version.replace(".", "") in pinned


@pytest.mark.every_store
def test_table_says_what_the_store_offers(store: stores.Store) -> None:
    """The other tests check that the store really offers this."""
    row = rows()[store.name]
    offered = {
        "object tags": "`tags` or" in row["`HISTORY_RECORDS`"],
        "lifecycle rules": row["lifecycle rules"].startswith("yes"),
        "abort rule": row["abort rule"].startswith("yes"),
        "encryption": row["encryption"].startswith("yes"),
        "public access block": row["public access block"].startswith(("yes", "all but")),
        "cut bodies": row["keeps cut bodies"] == "no",
    }
    assert {name for name, is_offered in offered.items() if not is_offered} == {
        *store.lacks & offered.keys()
    }
