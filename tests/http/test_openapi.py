"""The contract as OpenAPI: it names what there is, and a server put to it does nothing else."""

import hashlib
import hmac
import itertools
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flit_core import buildapi  # type: ignore[import-untyped]
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.engine import events, from_schema
from schemathesis.generation.case import Case
from schemathesis.hooks import unregister
from schemathesis.transport.serialization import Binary

from service.bundles.proof import format_digest
from service.http import about
from service.http.problems import STATUS
from service.http.routes import ROUTES
from tests.support.repository import ROOT
from tests.support.services.thread import Serve, Service

CONTRACT = json.loads(about.openapi_document(retention=604_800, require_hmac=True))

CHECKS: dict[str, dict[str, object]] = {
    # What no schema can say of a request decides too: whether a digest and an HMAC are the
    # bundle's (422), whether an entity tag (412) and a range (416) fit the bundle that is there.
    "positive_data_acceptance": {"expected-statuses": ["2xx", 401, 404, 412, 416, 422]},
}


def responses(operation: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for status, response in operation["responses"].items():
        name = response.get("$ref", "").rpartition("/")[2]
        yield int(status), CONTRACT["components"]["responses"][name] if name else response


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in CONTRACT["paths"].items():
        for method in item.keys() & {"get", "head", "post", "put", "patch", "delete", "options"}:
            yield path, method.upper(), item[method]


def test_it_is_openapi_3_1() -> None:
    assert CONTRACT["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(CONTRACT).validate()
    broken = {**CONTRACT, "paths": {"/": {"get": {"responses": {"200": {}}}}}}
    with pytest.raises(Exception, match='"description" is a required property'):
        schemathesis.openapi.from_dict(broken).validate()


def test_it_has_the_routes_and_no_others() -> None:
    documented = {(re.sub("{.*?}", "{}", path), method) for path, method, _ in operations()}
    routed = {
        (re.sub("{.*?}", "{}", route.path), method)
        for route in ROUTES
        for method in route.methods or ()
    }
    assert documented == routed


def test_it_has_the_codes_with_their_statuses() -> None:
    assert set(CONTRACT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == set(
        STATUS
    )
    found = {}
    # Every operation may answer these, so none of them lists them.
    shared = {
        "responses": {
            status: {"$ref": f"#/components/responses/{name}"}
            for status, name in {
                "400": "MalformedRequest",
                "405": "MethodNotAllowed",
                "414": "UriTooLong",
                "431": "HeadersTooLarge",
            }.items()
        }
    }
    for operation in (*(operation for _, _, operation in operations()), shared):
        for status, response in responses(operation):
            problem = response.get("content", {}).get("application/problem+json")
            if problem is None:
                assert status < 400 or operation["operationId"] == "look"
                continue
            code = problem["schema"]["allOf"][1]["properties"]["code"]
            codes = code.get("enum") or [code["const"]]
            found.update(dict.fromkeys(codes, status))
            assert problem["example"]["code"] in codes
            assert problem["example"]["status"] == status
    assert found == STATUS


def test_it_is_served_as_this_server_is(service: Service, serve: Serve) -> None:
    answer = service.http.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == CONTRACT
    assert answer.json()["info"]["version"] == version("message-history-server")
    head = service.http.head("/openapi.json")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]

    open_to_ids = serve(require_hmac=False, retention="1h")
    parameters = open_to_ids.http.get("/openapi.json").json()["components"]["parameters"]
    assert parameters["Ttl"]["schema"]["maximum"] == 3600
    assert not parameters["Hmac"]["required"]
    assert not parameters["SigningKey"]["required"]


def test_the_package_brings_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / buildapi.build_wheel(str(tmp_path))) as wheel:
        assert {"service/http/about/openapi.yaml", "service/http/about/page.html"} <= set(
            wheel.namelist()
        )


@dataclass
class Client:
    """What generated requests lack: HMACs, digests and ranges that are those of a bundle.

    Of the requests that their schema allows every third is made right altogether, the next one
    keeps its HMAC and digests, and the last one its id too, whatever they are.
    """

    held: list[tuple[str, str, str]] = field(default_factory=list)
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)
    _turns: Iterator[int] = field(default_factory=lambda: itertools.cycle([0, 1, 2]))
    _ranges: Iterator[str] = field(
        default_factory=lambda: itertools.cycle(
            ["bytes=0-0", "bytes=-5", "bytes=2-1", "bytes=9999-"]
        )
    )

    def prepare(self, case: Case[Any]) -> None:
        if case.meta is None or not case.meta.generation.mode.is_positive:
            return
        if case.method == "POST":
            self._sign(case)
        elif self.held and "X-HMAC" in case.headers and (turn := next(self._turns)) < 2:
            case.path_parameters["id"], *proof = self.held[-1]
            if turn == 0:
                case.headers["X-HMAC"], case.headers["X-SIGNING-KEY"] = proof
                if "Range" in case.headers:
                    case.headers["Range"] = next(self._ranges)
                    case.headers.pop("If-Range", None)
                    case.headers.pop("If-Match", None)

    def note(self, case: Case[Any], response: Any) -> None:
        self.seen[f"{case.method} {case.path}", response.status_code] += 1
        if (
            case.method == "POST"
            and response.status_code == 200
            and "X-SIGNING-KEY" in case.headers
        ):
            proof = case.headers["X-HMAC"], case.headers["X-SIGNING-KEY"]
            self.held.append((response.text, *proof))
        elif case.method == "DELETE" and response.status_code == 204:
            self.held.pop()

    def _sign(self, case: Case[Any]) -> None:
        if "X-HMAC" not in case.headers:
            case.headers.pop("X-SIGNING-KEY", None)
        bundle: Any = case.body
        if isinstance(bundle, dict):
            bundle = bundle["file"]
            case.headers.pop("Content-Digest", None)
            case.headers.pop("Repr-Digest", None)
        else:
            # "*/*" stands for the types without an entry of their own; to all of them it is bytes.
            if case.media_type not in ("*/*", "multipart/form-data"):
                case.headers["Content-Type"] = case.media_type
            case.media_type = "application/octet-stream"
        bundle = bundle.data if isinstance(bundle, Binary) else bundle.encode()
        right, key = next(self._turns) == 0, case.headers.get("X-SIGNING-KEY")
        if right and key:
            case.headers["X-HMAC"] = hmac.new(key.encode("latin-1"), bundle, "sha256").hexdigest()
        for name in case.headers.keys() & {"Content-Digest", "Repr-Digest"}:
            # For a header whose pattern has a "=", schemathesis sends "0" as if that were right.
            if right or case.headers[name] == "0":
                case.headers[name] = format_digest(hashlib.sha256(bundle).hexdigest())


@pytest.fixture
def client() -> Iterator[Client]:
    """Stands between schemathesis and the wire."""
    client = Client()

    def before_call(_: object, case: Case[Any], __: dict[str, Any]) -> None:
        client.prepare(case)

    def after_call(_: object, case: Case[Any], response: Any) -> None:
        client.note(case, response)

    def filter_failure(_: object, failure: Failure, case: Case[Any], __: object) -> bool:
        """To be passed over: a body that is no form is a bundle, whatever schema it violates."""
        assert case.meta is not None
        parts = case.meta.components.items()
        wrong = {location for location, part in parts if part.mode.is_negative}
        bare = wrong == {ParameterLocation.BODY} and case.media_type != "multipart/form-data"
        return not (bare and isinstance(failure, AcceptedNegativeData))

    hooks = [schemathesis.hook(hook) for hook in (before_call, after_call, filter_failure)]
    yield client
    for hook in hooks:
        unregister(hook)


def explore(service: Service, *, examples: int) -> None:
    """Let schemathesis loose on a server, and fail with all that it has found."""
    config = {
        "seed": 5558,
        "base-url": service.url,
        "checks": CHECKS,
        "generation": {
            "max-examples": examples,
            "database": "none",
            # Headers that it does not know are no mistake to an HTTP server.
            "allow-extra-parameters": False,
        },
    }
    contract = service.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(contract, config=SchemathesisConfig.from_dict(config))
    failures = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            failures.append(str(getattr(event, "info", event)))
        if isinstance(event, events.ScenarioFinished):
            for checks in event.recorder.checks.values():
                failures += [
                    f"{check.name}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                    for check in checks
                    if check.failure_info
                ]
    assert not failures, "\n\n".join(failures)


def test_a_server_does_what_it_says(service: Service, client: Client) -> None:
    explore(service, examples=1)
    assert client.seen.total() >= 200


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_server_does_what_it_says_at_length(service: Service, client: Client) -> None:
    """All that is documented is met, but what a sound server does not give to small bundles."""
    explore(service, examples=600)
    for (request, status), times in sorted(client.seen.items()):
        print(f"{request} {status}: {times}")
    print(f"{client.seen.total()} requests")
    assert client.seen.total() >= 2000
    documented = {
        (f"{method} {path}", status)
        for path, method, operation in operations()
        for status, _ in responses(operation)
        if status not in (408, 413, 500, 503)
    }
    assert documented <= client.seen.keys()
