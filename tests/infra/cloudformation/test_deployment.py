"""The templates, deployed to moto."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from service import settings
from service.settings import Settings
from tests.infra.cloudformation.templates import DEFAULTS, TEMPLATES, Template
from tests.support.stores import Store
from tests.support.stores.access import aws_client

Deployment = tuple[dict[str, str], Callable[[str], Any]]


@pytest.fixture(scope="module")
def deployment(get_store: Callable[[str], Store]) -> Iterator[Deployment]:
    """Deploy both stacks with default parameters. Yield their outputs and a client factory."""
    store = get_store("moto")

    def client(name: str) -> Any:
        return aws_client(store, name)

    stack = f"history-{uuid4()}"
    subnets = [subnet["SubnetId"] for subnet in client("ec2").describe_subnets()["Subnets"][:2]]
    parameters = {
        "bucket": {"BucketName": stack},
        "service": {
            "BucketStack": f"{stack}-bucket",
            "Tag": "1",
            "Vpc": client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"],
            "PublicSubnets": ",".join(subnets),
            "TaskSubnets": ",".join(subnets),
            "Certificate": client("acm").request_certificate(DomainName="history.example")[
                "CertificateArn"
            ],
        },
    }
    cloudformation = client("cloudformation")
    for name in TEMPLATES:
        cloudformation.create_stack(
            StackName=f"{stack}-{name}",
            TemplateBody=Template(name).text,
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value}
                for key, value in parameters[name].items()
            ],
        )
    try:
        [created] = cloudformation.describe_stacks(StackName=f"{stack}-service")["Stacks"]
        assert created["StackStatus"] == "CREATE_COMPLETE"
        outputs = {output["OutputKey"]: output["OutputValue"] for output in created["Outputs"]}
        yield {**outputs, "Bucket": stack, "Stack": f"{stack}-service"}, client
    finally:
        for name in reversed(TEMPLATES):
            cloudformation.delete_stack(StackName=f"{stack}-{name}")


def test_task_environment_contains_valid_settings(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, client = deployment
    task = client("ecs").describe_task_definition(taskDefinition=outputs["Stack"])
    history, _ = task["taskDefinition"]["containerDefinitions"]
    environment = {variable["name"]: variable["value"] for variable in history["environment"]}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names = {name for name in environment if name.startswith("HISTORY_")}
    assert names <= {f"HISTORY_{name.upper()}" for name in Settings.model_fields}
    # Settings without a parameter have their defaults. The defaults of the parameters are the same.
    config = settings.load()
    assert config.bucket == outputs["Bucket"]
    assert config.log_format == "json"
    differing = {"bucket", "log_format"}
    assert config.model_dump(exclude=differing) == DEFAULTS.model_dump(exclude=differing)
    assert environment["AWS_DEFAULT_REGION"] == "us-east-1"


def test_load_balancer_listens_only_for_https(deployment: Deployment) -> None:
    outputs, client = deployment
    load_balancing = client("elbv2")
    [balancer] = [
        candidate
        for candidate in load_balancing.describe_load_balancers()["LoadBalancers"]
        if candidate["DNSName"] == outputs["Address"]
    ]
    [listener] = load_balancing.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])[
        "Listeners"
    ]
    assert (listener["Protocol"], listener["Port"]) == ("HTTPS", 443)
