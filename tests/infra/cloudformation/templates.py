"""CloudFormation's templates, as they are once their parameters are given.

CloudFormation in moto 5.2 and in LocalStack 4.9 passes over a bucket's lifecycle, in moto also over
its public-access block: `make_bucket` does what the template says through S3's own API.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from service.settings import Settings
from tests.support.repository import ROOT

FOLDER = ROOT / "infra" / "cloudformation"

ABSENT = object()
"""AWS::NoValue."""

PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::NoValue": ABSENT,
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-3",
    "AWS::StackName": "history",
    "AWS::URLSuffix": "amazonaws.com",
}


class _Loader(yaml.SafeLoader):
    """Reads `!Ref x` as `{"Ref": "x"}`, and so on."""


def _short(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt":
        value = value.split(".", 1)
    return {suffix if suffix == "Ref" else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _short)


class Template:
    """A template and its parameters; `imports` are what other stacks export."""

    def __init__(
        self, name: str, *, imports: Mapping[str, str] | None = None, **parameters: str
    ) -> None:
        self.text = (FOLDER / f"{name}.yaml").read_text()
        self.source: dict[str, Any] = yaml.load(self.text, _Loader)
        self._imports = imports or {}
        declared = self.source["Parameters"]
        assert parameters.keys() <= declared.keys()
        self._values = {
            name: parameters.get(name, parameter.get("Default"))
            for name, parameter in declared.items()
        }

    def properties(self, resource: str) -> dict[str, Any]:
        properties: dict[str, Any] = self._resolve(self.source["Resources"][resource]["Properties"])
        return properties

    def exports(self) -> dict[str, str]:
        return {
            self._resolve(output["Export"]["Name"]): self._resolve(output["Value"])
            for output in self.source["Outputs"].values()
        }

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            items = [self._resolve(item) for item in value]
            return [item for item in items if item is not ABSENT]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(name, argument)] = value.items()
            if name == "Ref" or name.startswith("Fn::"):
                return getattr(self, f"_{name.removeprefix('Fn::').lower()}")(argument)
        found = {name: self._resolve(item) for name, item in value.items()}
        return {name: item for name, item in found.items() if item is not ABSENT}

    def _ref(self, name: str) -> Any:
        if name in self.source["Resources"]:
            return f"<{name}>"
        return PSEUDO[name] if name in PSEUDO else self._values[name]

    def _getatt(self, path: list[str]) -> str:
        assert path[0] in self.source["Resources"]
        return f"<{'.'.join(path)}>"

    def _sub(self, argument: Any) -> str:
        text, names = (argument, {}) if isinstance(argument, str) else argument

        def value(found: re.Match[str]) -> str:
            if found[1] in names:
                return str(self._resolve(names[found[1]]))
            return str(
                self._getatt(found[1].split(".", 1)) if "." in found[1] else self._ref(found[1])
            )

        return re.sub(r"\$\{([^}]+)\}", value, text)

    def _if(self, argument: list[Any]) -> Any:
        condition, yes, no = argument
        return self._resolve(yes if self._resolve(self.source["Conditions"][condition]) else no)

    def _not(self, argument: list[Any]) -> bool:
        return not self._resolve(argument[0])

    def _equals(self, argument: list[Any]) -> bool:
        one, other = self._resolve(argument)
        return bool(one == other)

    def _findinmap(self, argument: list[Any]) -> Any:
        name, key, column = self._resolve(argument)
        return self.source["Mappings"][name][key][column]

    def _importvalue(self, argument: Any) -> str:
        return self._imports[self._resolve(argument)]


def make_bucket(s3: Any, template: Template, name: str) -> None:
    """Make the bucket as the template has it, but for its policy, under this name."""
    properties = template.properties("Bucket")
    s3.create_bucket(Bucket=name, ObjectOwnership="BucketOwnerEnforced")
    assert properties.pop("OwnershipControls") == {
        "Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]
    }
    s3.put_bucket_lifecycle_configuration(
        Bucket=name,
        LifecycleConfiguration={
            "Rules": list(map(_rule, properties.pop("LifecycleConfiguration")["Rules"]))
        },
    )
    s3.put_public_access_block(
        Bucket=name,
        PublicAccessBlockConfiguration=properties.pop("PublicAccessBlockConfiguration"),
    )
    [encryption] = properties.pop("BucketEncryption")["ServerSideEncryptionConfiguration"]
    encryption["ApplyServerSideEncryptionByDefault"] = encryption.pop(
        "ServerSideEncryptionByDefault"
    )
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": [encryption]})
    assert not properties, "the rest is not made here"


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    """A lifecycle rule in the words of S3's API."""
    return {
        "ID": rule.pop("Id"),
        "Filter": {"Prefix": rule.pop("Prefix")},
        "Expiration": {"Days": rule.pop("ExpirationInDays")},
        **rule,
    }


TEMPLATES = ("bucket", "service")
DEFAULTS = Settings(bucket="history")
PAIR = Template("bucket")


def statements(template: Template, role: str) -> dict[str, dict[str, Any]]:
    return {
        statement["Sid"]: statement
        for policy in template.properties(role)["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    }


def attributes(found: list[dict[str, str]]) -> dict[str, str]:
    return {attribute["Key"]: attribute["Value"] for attribute in found}
