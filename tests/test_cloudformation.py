"""The CloudFormation templates are sound, deploy, and agree with the code and with each other."""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from pydantic import ValidationError
from starlette.routing import Match

from service import background, bucket, check, logs, server, settings, storage
from service.api import ROUTES
from service.client import Calls, connect
from service.metrics import Metrics
from service.middleware import NormalizePathMiddleware
from service.settings import Settings
from tests import calls, templates
from tests.conftest import SMALL_PART, Service, aws_environment, make_bucket, run_tool
from tests.stores import Store
from tests.templates import FOLDER, Template

ROOT = Path(__file__).parents[1]
TEMPLATES = ("bucket", "service")
PRIVATE = {"/metrics", "/readyz"}
DEFAULTS = Settings(bucket="history")
PAIR = Template("bucket")
KEY = "arn:aws:kms:eu-west-3:123456789012:key/1"


@pytest.fixture
def service_template() -> Template:
    return Template("service", imports=PAIR.exports(), BucketStack="history", Tag="1")


# --- As others see them


@pytest.mark.parametrize("name", TEMPLATES)
def test_cfn_lint_finds_nothing(name: str) -> None:
    linted = run_tool("cfn-lint", FOLDER / f"{name}.yaml")
    assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout + linted.stderr


def test_checkov_finds_nothing_but_what_is_excused() -> None:
    options = ("--framework", "cloudformation", "--skip-download", "--output", "json")
    scanned = run_tool("checkov", *options, "--directory", FOLDER)
    results = json.loads(scanned.stdout)["results"]
    assert not results["parsing_errors"]
    failed = [
        (found["check_id"], found["check_name"], found["resource"])
        for found in results["failed_checks"]
    ]
    assert failed == []
    assert {Path(found["file_path"]).stem for found in results["passed_checks"]} == set(TEMPLATES)
    # An exception is there with its reason, and only where there is something to except.
    written = re.findall(
        r"# checkov:skip=(\w+):(\w.{20,})$",
        "".join(Template(name).text for name in TEMPLATES),
        flags=re.MULTILINE,
    )
    skipped = sorted(found["check_id"] for found in results["skipped_checks"])
    assert sorted(name for name, _ in written) == skipped


# --- Deployed into moto


Deployed = tuple[dict[str, str], Callable[[str], Any]]


@pytest.fixture(scope="module")
def deployed(get_store: Callable[[str], Store]) -> Iterator[Deployed]:
    """Both stacks with their defaults: what they are called, and clients to look at them."""
    store = get_store("moto")

    def client(name: str) -> Any:
        return boto3.client(
            name,
            endpoint_url=store.endpoint_url,
            aws_access_key_id=store.access_key,
            aws_secret_access_key=store.secret_key,
            region_name=store.region,
        )

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
        [made] = cloudformation.describe_stacks(StackName=f"{stack}-service")["Stacks"]
        assert made["StackStatus"] == "CREATE_COMPLETE"
        outputs = {output["OutputKey"]: output["OutputValue"] for output in made["Outputs"]}
        yield {**outputs, "Bucket": stack, "Stack": f"{stack}-service"}, client
    finally:
        for name in reversed(TEMPLATES):
            cloudformation.delete_stack(StackName=f"{stack}-{name}")


def test_the_task_gets_settings_that_the_service_takes(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, client = deployed
    task = client("ecs").describe_task_definition(taskDefinition=outputs["Stack"])
    history, _ = task["taskDefinition"]["containerDefinitions"]
    environment = {one["name"]: one["value"] for one in history["environment"]}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names = {name for name in environment if name.startswith("HISTORY_")}
    assert names <= {f"HISTORY_{name.upper()}" for name in Settings.model_fields}
    # What is not a parameter is at its default, and with its defaults so is what is one.
    config = settings.load()
    assert config.bucket == outputs["Bucket"]
    assert config.log_format == "json"
    differing = {"bucket", "log_format"}
    assert config.model_dump(exclude=differing) == DEFAULTS.model_dump(exclude=differing)
    assert environment["AWS_DEFAULT_REGION"] == "us-east-1"


def test_the_load_balancer_speaks_tls_alone(deployed: Deployed) -> None:
    outputs, client = deployed
    balancing = client("elbv2")
    [balancer] = [
        found
        for found in balancing.describe_load_balancers()["LoadBalancers"]
        if found["DNSName"] == outputs["Address"]
    ]
    [listener] = balancing.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])[
        "Listeners"
    ]
    assert (listener["Protocol"], listener["Port"]) == ("HTTPS", 443)


# --- The bucket


@pytest.mark.parametrize(("prefix", "days"), [("bundles/", 7), ("a/b/", 30)])
def test_init_bucket_and_check_find_the_bucket_right(
    store: Store, s3: Any, prefix: str, days: int
) -> None:
    template = Template("bucket", Prefix=prefix, RetentionDays=str(days))
    config = Settings(bucket=f"history-{uuid4()}", prefix=prefix, retention=days * 86_400)
    templates.make_bucket(s3, template, config.bucket)
    assert make_bucket(store, config) == [
        f"bucket {config.bucket}: is there",
        f"lifecycle: is right (bundles go after {days + 1} days, abandoned uploads after 1)",
        "public access: is blocked",
        "encryption: is on",
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
            found = check.examine(
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


# --- What the tasks may do


def statements(template: Template, role: str) -> dict[str, dict[str, Any]]:
    return {
        statement["Sid"]: statement
        for policy in template.properties(role)["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    }


def test_the_task_may_do_what_the_code_does_and_no_more(service_template: Template) -> None:
    granted = statements(service_template, "TaskRole")
    assert granted.keys() == {"Bundles", "Bucket", "Collector"}
    on_bundles, on_bucket = granted["Bundles"], granted["Bucket"]
    assert on_bundles["Resource"] == "<Bucket.Arn>/bundles/*"
    assert on_bucket["Resource"] == "<Bucket.Arn>"
    assert calls.modules() == {"storage", "check", "bucket"}
    used = calls.callers("storage").keys() | calls.callers("check").keys()
    assert {*on_bundles["Action"], *on_bucket["Action"]} == used
    assert {action for action in used if "Bucket" in action or "Configuration" in action} <= {
        *on_bucket["Action"]
    }
    # init-bucket's work is done by bucket.yaml.
    assert not {action for action in used if re.match("s3:(Create|Put.*(Bucket|Config))", action)}


def test_every_action_names_its_callers(service_template: Template) -> None:
    named = dict(re.findall(r"- (s3:\w+) # (.+)$", service_template.text, flags=re.MULTILINE))
    by_storage, by_check = calls.callers("storage"), calls.callers("check")
    assert named.keys() == by_storage.keys() | by_check.keys()
    for action, comment in named.items():
        owner, by = ("S3Storage", by_storage) if action in by_storage else ("check", by_check)
        assert set(comment.removeprefix(f"{owner}.").split(", ")) == by[action]


def test_the_documented_actions_are_those_of_the_code() -> None:
    for module in (storage, bucket):
        documented = set(re.findall(r"s3:\w+", module.__doc__ or ""))
        assert documented == calls.callers(module.__name__.split(".")[-1]).keys()
    only_check = calls.callers("check").keys() - calls.callers("storage").keys()
    assert set(re.findall(r"s3:\w+", check.__doc__ or "")) == only_check


def test_a_key_is_used_through_s3_alone() -> None:
    template = Template("service", imports=PAIR.exports(), BucketStack="history", KeyArn=KEY)
    statement = statements(template, "TaskRole")["Key"]
    assert statement["Resource"] == KEY
    assert set(statement["Action"]) == {"kms:GenerateDataKey", "kms:Decrypt"}
    assert statement["Condition"] == {
        "StringEquals": {"kms:ViaService": "s3.eu-west-3.amazonaws.com"}
    }


# --- Task and load balancer


def attributes(found: list[dict[str, str]]) -> dict[str, str]:
    return {attribute["Key"]: attribute["Value"] for attribute in found}


def test_the_container_is_the_images(service_template: Template) -> None:
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    for container in service_template.properties("Task")["ContainerDefinitions"]:
        assert container["ReadonlyRootFilesystem"] is True
        assert container["LinuxParameters"] == {"Capabilities": {"Drop": ["ALL"]}}
        assert f"USER {container['User']}\n" in dockerfile
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    [test] = re.findall("^HEALTHCHECK .*CMD (.*)$", dockerfile, flags=re.MULTILINE)
    assert history["HealthCheck"]["Command"] == ["CMD", *json.loads(test)]
    assert f"EXPOSE {DEFAULTS.port}\n" in dockerfile


def test_everyone_means_the_same_port(service_template: Template) -> None:
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    [target] = service_template.properties("Service")["LoadBalancers"]
    ports = {
        history["PortMappings"][0]["ContainerPort"],
        target["ContainerPort"],
        service_template.properties("Targets")["Port"],
        *(rule["FromPort"] for rule in _rules(service_template, "BalancerGroup", "Egress")),
        *(rule["ToPort"] for rule in _rules(service_template, "BalancerGroup", "Egress")),
        service_template.properties("TaskIngress")["FromPort"],
        service_template.properties("TaskIngress")["ToPort"],
    }
    assert ports == {DEFAULTS.port}
    assert target["ContainerName"] == history["Name"]


def _rules(template: Template, group: str, way: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = template.properties(group)[f"SecurityGroup{way}"]
    return found


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_memory_fits_the_budget(size: str) -> None:
    template = Template("service", imports=PAIR.exports(), BucketStack="history", Size=size)
    task = template.properties("Task")
    history, collector = task["ContainerDefinitions"]
    environment = {one["Name"]: one["Value"] for one in history["Environment"]}
    budget = Settings(bucket="history", memory_budget=environment["HISTORY_MEMORY_BUDGET"])
    assert history["MemoryReservation"] == budget.memory_budget / (1 << 20) + 160
    assert history["MemoryReservation"] + collector["Memory"] <= task["Memory"]
    assert task["Cpu"] <= 1024


def test_a_task_has_the_time_that_it_takes_to_end(service_template: Template) -> None:
    history, _ = service_template.properties("Task")["ContainerDefinitions"]
    draining = DEFAULTS.drain_delay + DEFAULTS.drain_timeout
    ending = draining + server.LAST_CALL + background.CLEANUP_TIMEOUT
    assert ending + 10 <= history["StopTimeout"] <= 120, "Fargate gives two minutes at most"
    targets = attributes(service_template.properties("Targets")["TargetGroupAttributes"])
    assert int(targets["deregistration_delay.timeout_seconds"]) >= draining
    assert targets["load_balancing.algorithm.type"] == "least_outstanding_requests"


def test_the_load_balancer_waits_longer_than_the_service_but_keeps_connections_shorter(
    service_template: Template,
) -> None:
    balancer = attributes(service_template.properties("Balancer")["LoadBalancerAttributes"])
    idle = int(balancer["idle_timeout.timeout_seconds"])
    assert DEFAULTS.read_timeout + DEFAULTS.queue_timeout < idle < server.KEEP_ALIVE
    targets = service_template.properties("Targets")
    assert targets["HealthCheckPath"] == "/readyz"
    assert targets["HealthCheckTimeoutSeconds"] > storage.PROBE_TIMEOUT


def test_the_load_balancer_answers_nothing_by_itself_that_is_no_404(
    service_template: Template,
) -> None:
    [action] = service_template.properties("Listener")["DefaultActions"]
    answer = action["FixedResponseConfig"]
    assert (action["Type"], answer["StatusCode"]) == ("fixed-response", "404")
    problem = json.loads(answer["MessageBody"])
    assert (problem["status"], problem["code"]) == (404, "not_found")
    kinds = re.findall(r"Type: ([\w-]+)(?:,|$)", service_template.text, flags=re.MULTILINE)
    assert "redirect" not in kinds
    assert "AWS::ElasticLoadBalancingV2::Listener" in service_template.text


ID = "0f0e0d0c-0b0a-4908-8706-050403020100"
SPELLINGS = [
    f"{before}{path}{after}"
    for path in ("metrics", "readyz", "%6detrics", "metric%73", "ready%7A", "upload", "healthz")
    for before in ("/", "//", "/./", "/files/../", "/upload/../", "/files/", "/x/")
    for after in ("", "/", "//", "%2f", "%2F%2f", "/files/x", "/upload", ";", "%00")
]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/healthz", "/openapi.json", "/upload", "/upload/", "//upload", "//upload/"),
        *(f"/files/{ID}", f"/files/{ID}/", f"//files/{ID}", f"//files/{ID}/"),
    ],
)
def test_the_load_balancer_passes_on(service_template: Template, path: str) -> None:
    assert _passed_on(service_template, path)
    assert _route(path) is not None


def test_the_load_balancer_passes_on_nothing_private(service_template: Template) -> None:
    reached = {_route(path) for path in SPELLINGS}
    assert reached >= PRIVATE, "the spellings try something"
    passed_on = {_route(path) for path in SPELLINGS if _passed_on(service_template, path)}
    assert not passed_on & PRIVATE
    assert {route.path for route in ROUTES} >= PRIVATE


def _passed_on(template: Template, path: str) -> bool:
    """What a load balancer does: `*` and `?` against the path as it was sent."""
    patterns = [
        pattern
        for rule in ("Bundles", "Pages")
        for condition in template.properties(rule)["Conditions"]
        for pattern in condition["PathPatternConfig"]["Values"]
    ]
    return any(
        re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), path)
        for pattern in patterns
    )


def _route(path: str) -> str | None:
    """Which of the service's routes takes a path."""
    seen: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(route.path for route in ROUTES if route.matches(scope)[0] is not Match.NONE)

    paths = {"path": path, "raw_path": path.encode()}
    scope = {"type": "http", "method": "GET", "headers": [], **paths}
    asyncio.run(NormalizePathMiddleware(note)(scope, None, None))  # type: ignore[arg-type]
    return seen[0] if seen else None


# --- Watching it


def exposed() -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", Metrics().exposition().decode(), flags=re.MULTILINE))


def test_the_collector_reads_what_scaling_and_alarms_ask_for(service_template: Template) -> None:
    _, collector = service_template.properties("Task")["ContainerDefinitions"]
    environment = {one["Name"]: one["Value"] for one in collector["Environment"]}
    assert collector["Command"] == [f"--config=env:{next(iter(environment))}"]
    [text] = environment.values()
    config = yaml.safe_load(text)
    [job] = config["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{DEFAULTS.port}"]}]
    assert job.get("metrics_path", "/metrics") in {route.path for route in ROUTES}
    emf = config["exporters"]["awsemf"]
    [declared] = emf["metric_declarations"]
    [relabelled] = job["metric_relabel_configs"]
    read = {name for name in exposed() if re.fullmatch(relabelled["regex"], name)}
    assert read == {
        name for name in exposed() if re.search(declared["metric_name_selectors"][0], name)
    }
    asked: dict[str, list[Any]] = {}
    policy = service_template.properties("ScaleOnBudget")
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    for query in [
        *tracking["CustomizedMetricSpecification"]["Metrics"],
        *service_template.properties("BudgetAlarm")["Metrics"],
    ]:
        if "MetricStat" in query:
            metric = query["MetricStat"]["Metric"]
            asked.setdefault(metric["MetricName"], []).append(metric)
            assert metric["Namespace"] == emf["namespace"]
            assert [[one["Name"] for one in metric["Dimensions"]]] == declared["dimensions"]
    assert asked.keys() == read
    assert emf["log_group_name"] == "<Metrics>", "where the role lets it write"


def test_every_alarm_goes_to_the_topic() -> None:
    template = Template(
        "service", imports=PAIR.exports(), BucketStack="history", AlarmTopic="arn:aws:sns:x"
    )
    alarms = [
        name
        for name, resource in template.source["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    ]
    assert len(alarms) == 6
    for name in alarms:
        assert template.properties(name)["AlarmActions"] == ["arn:aws:sns:x"]


def test_every_metric_that_an_alarm_reads_from_the_log_is_written(
    service_template: Template,
) -> None:
    written = {
        service_template.properties(name)["MetricTransformations"][0]["MetricName"]
        for name in ("S3Failures", "Queued", "Stored")
    }
    read = {service_template.properties("S3Alarm")["MetricName"]} | {
        query["MetricStat"]["Metric"]["MetricName"]
        for query in service_template.properties("LatencyAlarm")["Metrics"]
        if "MetricStat" in query
    }
    assert read == written


@pytest.mark.usefixtures("_restored_logging")
def test_the_log_filters_find_their_lines(
    service_template: Template, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json", "info")
    refusal: Any = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    for error in (
        ClientError(refusal, "PutObject"),
        NoCredentialsError(),
        EndpointConnectionError(endpoint_url="x"),
    ):
        Calls("history", Metrics()).failed("PutObject", error)
    logging.getLogger("service.leftovers").info("S3 has removed what was left of failed uploads")
    service.fetch(service.upload(b"a bundle"))
    service.http.get("/readyz")
    written: list[dict[str, Any]] = []
    while len([line for line in written if "route" in line]) < 3:  # They follow their answers.
        written += map(json.loads, capsys.readouterr().err.splitlines())
        time.sleep(0.01)
    failures, queued, stored = (
        service_template.properties(name) for name in ("S3Failures", "Queued", "Stored")
    )
    assert len([line for line in written if _found(failures["FilterPattern"], line)]) == 3
    for watched in (queued, stored):
        [transformation] = watched["MetricTransformations"]
        found = [line for line in written if _found(watched["FilterPattern"], line)]
        assert {line["route"] for line in found} == {"/upload", "/files/{bundle_id}"}
        value = transformation["MetricValue"].removeprefix("$.")
        assert all(isinstance(line[value], float | int) for line in found)


def _found(pattern: str, line: Mapping[str, Any]) -> bool:
    """As much of CloudWatch's syntax as is used: `{ ($.a = "x*") && ($.b = "y") }`, or `||`."""
    terms = re.split(r" (?:&&|\|\|) ", pattern.removeprefix("{ ").removesuffix(" }"))
    held = []
    for term in terms:
        parsed = re.fullmatch(r'\(\$\.(\w+) = "([^"]*)"\)', term)
        assert parsed is not None
        wanted = re.escape(parsed[2]).replace(r"\*", ".*")
        held.append(re.fullmatch(wanted, str(line.get(parsed[1]))) is not None)
    return any(held) if "||" in pattern else all(held)


# --- As the README tells it


README = (ROOT / "infra" / "README.md").read_text()


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_parameter_is_documented(name: str) -> None:
    _, _, table = README.partition(f"| parameter of {name}.yaml |")
    table, _, _ = table.partition("\n\n")
    documented = dict(re.findall(r"^\| `(\w+)` \| (?:`?([^`|]*)`? )?\|", table, flags=re.MULTILINE))
    defaults = {
        parameter: str(declared.get("Default", "needed"))
        for parameter, declared in Template(name).source["Parameters"].items()
    }
    assert documented == defaults


def test_every_size_is_documented() -> None:
    for name, size in Template("service").source["Mappings"]["Sizes"].items():
        budget = size["Budget"].removesuffix("MiB")
        budget = f"{budget} MiB" if int(budget) < 1024 else f"{int(budget) // 1024} GiB"
        line = f"| `{name}` | {size['Cpu'] / 1024:g} | {size['Memory'] // 1024} GiB | {budget} |"
        assert line in README


def test_the_requests_that_are_counted_are_those_that_are_sent(service: Service) -> None:
    """Of a bundle in one part, and of one in two; the README's has thirteen."""
    rows = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \| \$([\d.]+) \|$", README, flags=re.MULTILINE)
    for _, puts, gets, dollars in rows:
        assert float(dollars) == pytest.approx(5 * int(puts) + 0.4 * int(gets))
    told = {what: (int(puts), int(gets)) for what, puts, gets, _ in rows}
    key, small, large = "k" * 32, b"a bundle", bytes(SMALL_PART + 1)
    proofs = {
        body: {"X-SIGNING-KEY": key, "X-HMAC": hmac.digest(key.encode(), body, "sha256").hex()}
        for body in (small, large)
    }

    def sent(action: Callable[[], Any]) -> tuple[tuple[int, int], Any]:
        before = _requests(service)
        result = action()
        after = _requests(service)
        return (after[0] - before[0], after[1] - before[1]), result

    upload, bundle = sent(lambda: service.upload(small, proofs[small]["X-HMAC"]))
    assert upload == told["upload of up to 8 MiB"]
    assert sent(lambda: service.fetch(bundle, proofs[small]))[0] == told["first download"]
    assert sent(lambda: service.fetch(bundle, proofs[small]))[0] == told["later download"]
    path = f"/files/{bundle}"
    delete, _ = sent(lambda: service.http.delete(path, headers=proofs[small]))
    assert delete == told["`DELETE`"]
    upload, bundle = sent(lambda: service.upload(large, proofs[large]["X-HMAC"]))
    puts, gets = told["upload of 100 MiB, in 13 parts"]
    assert upload == (puts - 13 + 2, gets)
    first, _ = sent(lambda: service.fetch(bundle, proofs[large]))
    assert first == told["first download of more than 8 MiB"]


def _requests(service: Service) -> tuple[int, int]:
    """Calls to S3 so far that cost like PUT, and like GET; to ask for readiness is not counted."""
    found = re.findall(
        r'history_s3_request_seconds_count\{operation="(\w+)",outcome="\w+"\} (\S+)',
        service.http.get("/metrics").text,
    )
    gets = sum(int(float(count)) for name, count in found if re.match("Get|HeadObject", name))
    free = re.compile("Delete|Abort|HeadBucket|Get|HeadObject")
    puts = sum(int(float(count)) for name, count in found if not free.match(name))
    return puts, gets
