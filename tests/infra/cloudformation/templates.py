"""The CloudFormation templates, with their parameters and functions resolved.

CloudFormation in moto 5.2 and in LocalStack 4.9 ignores a bucket's lifecycle, and moto also ignores
the public access block. So `make_bucket` creates the template's bucket through the S3 API.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from service.settings import Settings
from tests.support.repository import ROOT

FOLDER = ROOT / "infra" / "cloudformation"

NO_VALUE = object()
"""Stands for AWS::NoValue: the property is removed."""

PSEUDO_PARAMETERS = {
    "AWS::AccountId": "123456789012",
    "AWS::NoValue": NO_VALUE,
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-3",
    "AWS::StackName": "history",
    "AWS::URLSuffix": "amazonaws.com",
}


class _Loader(yaml.SafeLoader):
    """Reads the short form of a function, `!Ref x`, as its long form, `{"Ref": "x"}`."""


def _construct_function(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
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


_Loader.add_multi_constructor("!", _construct_function)


class Template:
    """A template with its parameters. `imports` are the values that other stacks export."""

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
            return [item for item in items if item is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(name, argument)] = value.items()
            if name == "Ref" or name.startswith("Fn::"):
                return getattr(self, f"_{name.removeprefix('Fn::').lower()}")(argument)
        resolved = {name: self._resolve(item) for name, item in value.items()}
        return {name: item for name, item in resolved.items() if item is not NO_VALUE}

    def _ref(self, name: str) -> Any:
        if name in self.source["Resources"]:
            return f"<{name}>"
        return PSEUDO_PARAMETERS[name] if name in PSEUDO_PARAMETERS else self._values[name]

    def _getatt(self, path: list[str]) -> str:
        assert path[0] in self.source["Resources"]
        return f"<{'.'.join(path)}>"

    def _sub(self, argument: Any) -> str:
        text, names = (argument, {}) if isinstance(argument, str) else argument

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name in names:
                return str(self._resolve(names[name]))
            return str(self._getatt(name.split(".", 1)) if "." in name else self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", value, text)

    def _if(self, argument: list[Any]) -> Any:
        condition, if_true, if_false = argument
        holds = self._resolve(self.source["Conditions"][condition])
        return self._resolve(if_true if holds else if_false)

    def _not(self, argument: list[Any]) -> bool:
        return not self._resolve(argument[0])

    def _equals(self, argument: list[Any]) -> bool:
        left, right = self._resolve(argument)
        return bool(left == right)

    def _findinmap(self, argument: list[Any]) -> Any:
        name, key, column = self._resolve(argument)
        return self.source["Mappings"][name][key][column]

    def _importvalue(self, argument: Any) -> str:
        return self._imports[self._resolve(argument)]


def make_bucket(s3: Any, template: Template, name: str) -> None:
    """Create the bucket of the template, without its policy, under this name."""
    properties = template.properties("Bucket")
    s3.create_bucket(Bucket=name, ObjectOwnership="BucketOwnerEnforced")
    assert properties.pop("OwnershipControls") == {
        "Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]
    }
    s3.put_bucket_lifecycle_configuration(
        Bucket=name,
        LifecycleConfiguration={
            "Rules": list(map(_lifecycle_rule, properties.pop("LifecycleConfiguration")["Rules"]))
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
    assert not properties, "make_bucket does not know these properties"


def _lifecycle_rule(rule: dict[str, Any]) -> dict[str, Any]:
    """Convert a lifecycle rule from CloudFormation's format to that of the S3 API."""
    return {
        "ID": rule.pop("Id"),
        "Filter": {"Prefix": rule.pop("Prefix")},
        "Expiration": {"Days": rule.pop("ExpirationInDays")},
        **rule,
    }


TEMPLATES = ("bucket", "service")
DEFAULTS = Settings(bucket="history")
BUCKET_TEMPLATE = Template("bucket")


def statements(template: Template, role: str) -> dict[str, dict[str, Any]]:
    return {
        statement["Sid"]: statement
        for policy in template.properties(role)["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    }


def attributes(pairs: list[dict[str, str]]) -> dict[str, str]:
    return {attribute["Key"]: attribute["Value"] for attribute in pairs}
