"""What the load balancer passes on, and how long it waits."""

import asyncio
import json
import re
from typing import Any

import pytest
from starlette.routing import Match

from service.http.middleware import NormalizePathMiddleware
from service.http.routes import ROUTES
from service.http.server import server
from service.s3 import storage
from tests.infra.cloudformation.templates import DEFAULTS, Template, attributes

PRIVATE = {"/metrics", "/readyz"}


def test_the_load_balancer_waits_longer_than_the_service_but_keeps_connections_shorter(
    service_template: Template,
) -> None:
    balancer = attributes(service_template.properties("Balancer")["LoadBalancerAttributes"])
    idle = int(balancer["idle_timeout.timeout_seconds"])
    assert DEFAULTS.read_timeout + DEFAULTS.queue_timeout < idle < server.KEEP_ALIVE_TIMEOUT
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
