"""The configuration files of nginx."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from service.http.middleware import RESPONSE_HEADERS
from service.http.problems import STATUS
from service.settings import Settings
from tests.infra.nginx.certificates import make_certificate
from tests.infra.stack.nginx import NGINX, configure, find_nginx, nginx_command, upstream_of
from tests.infra.tools import find_or_skip
from tests.support.stores import free_ports

# One worker runs all nginx tests: they share two replicas, and some tests kill one of them.
pytestmark = pytest.mark.xdist_group("nginx")

CONFIGURATION = (NGINX / "nginx.conf").read_text()


@pytest.mark.parametrize(
    ("listen", "upstream"),
    [
        ("listen.conf", "upstream.conf"),
        ("listen-tls.conf", "upstream.conf"),
        ("listen.conf", "upstream-compose.conf"),
    ],
)
def test_nginx_accepts_the_configuration(listen: str, upstream: str, tmp_path: Path) -> None:
    program = find_or_skip(find_nginx)
    make_certificate(tmp_path)
    port = str(free_ports(1)[0])
    listen_lines = re.sub(r"\b(5558|443)\b", port, (NGINX / listen).read_text())
    listen_lines = re.sub(r"listen \[::\].*", "", listen_lines)
    of_compose = upstream == "upstream-compose.conf"
    configure(
        tmp_path,
        listen_lines,
        (NGINX / upstream).read_text() if of_compose else upstream_of(free_ports(2)),
    )
    result = subprocess.run(
        [*nginx_command(program, tmp_path), "-t"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr


def test_nginx_limits_fit_those_of_the_service() -> None:
    config = Settings(bucket="a-bucket")

    def seconds(name: str) -> int:
        match = re.search(rf"^ *{name} +(\d+)s;", CONFIGURATION, re.MULTILINE)
        assert match, name
        return int(match[1])

    assert f"client_max_body_size {(config.max_bundle_size >> 10) + 64}k;" in CONFIGURATION
    assert seconds("client_body_timeout") > config.read_timeout
    assert seconds("send_timeout") > config.read_timeout
    assert seconds("worker_shutdown_timeout") >= config.drain_delay + config.drain_timeout + 5
    keep_alive = re.search(r"keepalive_timeout (\d+)s", (NGINX / "upstream.conf").read_text())
    assert keep_alive
    assert int(keep_alive[1]) < config.drain_delay


def test_every_nginx_error_is_a_problem_document() -> None:
    table = CONFIGURATION[CONFIGURATION.index("map $status $history_problem") :]
    problems = {
        int(status): json.loads(body)
        for status, body in re.findall(r"^ {8}(\d+) '(.*)';$", table, re.MULTILINE)
    }
    handled = re.search(r"error_page ([\d ]+) /problem;", CONFIGURATION)
    assert handled
    assert {*map(int, handled[1].split()), 431} - {500} == problems.keys()
    for status, body in problems.items():
        assert body.keys() == {"type", "title", "status", "detail", "code"}
        assert body["status"] == status
        assert STATUS.get(body["code"], status) == status
    page = (NGINX.parent / "README.md").read_text()
    assert {body["code"] for body in problems.values()} <= {*STATUS, *re.findall(r"`(\w+)`", page)}
    exposed = re.search(r'Access-Control-Expose-Headers "(.*)"', CONFIGURATION)
    assert exposed
    assert set(exposed[1].split(", ")) <= set(RESPONSE_HEADERS)
