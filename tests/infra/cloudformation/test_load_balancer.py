"""The load balancer: the paths it forwards, and its timeouts."""

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
from tests.infra.stack.nginx import NGINX

PRIVATE = {"/metrics", "/readyz"}


def test_load_balancer_timeouts_fit_those_of_the_service(service_template: Template) -> None:
    balancer = attributes(service_template.properties("Balancer")["LoadBalancerAttributes"])
    idle = int(balancer["idle_timeout.timeout_seconds"])
    [silence] = re.findall(r"proxy_read_timeout (\d+)s;", (NGINX / "nginx.conf").read_text())
    assert DEFAULTS.read_timeout + DEFAULTS.queue_timeout < int(silence) == idle
    assert idle < server.KEEP_ALIVE_TIMEOUT
    targets = service_template.properties("Targets")
    assert targets["HealthCheckPath"] == "/readyz"
    assert targets["HealthCheckTimeoutSeconds"] > storage.READINESS_TIMEOUT


def test_load_balancer_itself_only_responds_with_404(service_template: Template) -> None:
    [action] = service_template.properties("Listener")["DefaultActions"]
    response = action["FixedResponseConfig"]
    assert (action["Type"], response["StatusCode"]) == ("fixed-response", "404")
    problem = json.loads(response["MessageBody"])
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
def test_load_balancer_forwards_public_paths(service_template: Template, path: str) -> None:
    assert _is_forwarded(service_template, path)
    assert _route(path) is not None


def test_load_balancer_forwards_no_private_path(service_template: Template) -> None:
    reached = {_route(path) for path in SPELLINGS}
    assert reached >= PRIVATE, "some spellings have to reach the private routes"
    forwarded = {_route(path) for path in SPELLINGS if _is_forwarded(service_template, path)}
    assert not forwarded & PRIVATE
    assert {route.path for route in ROUTES} >= PRIVATE


def _is_forwarded(template: Template, path: str) -> bool:
    """Match the path as a load balancer does: undecoded, against patterns with `*` and `?`."""
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
    """Return the route of the service that handles a path."""
    matches: list[str] = []

    async def record_matches(scope: Any, receive: Any, send: Any) -> None:
        matches.extend(route.path for route in ROUTES if route.matches(scope)[0] is not Match.NONE)

    paths = {"path": path, "raw_path": path.encode()}
    scope = {"type": "http", "method": "GET", "headers": [], **paths}
    asyncio.run(NormalizePathMiddleware(record_matches)(scope, None, None))  # type: ignore[arg-type]
    return matches[0] if matches else None
