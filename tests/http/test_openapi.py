"""The OpenAPI document: it matches the routes and errors, and schemathesis checks the server."""

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
from tests.support.services.thread import Service, StartService

DOCUMENT = json.loads(about.openapi_document(retention=604_800, require_hmac=True))

CHECKS: dict[str, dict[str, object]] = {
    # A schema cannot say whether a digest and an HMAC match the bundle (422), or whether an entity
    # tag (412) and a range (416) fit the stored bundle.
    "positive_data_acceptance": {"expected-statuses": ["2xx", 401, 404, 412, 416, 422]},
}


def responses(operation: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for status, response in operation["responses"].items():
        name = response.get("$ref", "").rpartition("/")[2]
        yield int(status), DOCUMENT["components"]["responses"][name] if name else response


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method in item.keys() & {"get", "head", "post", "put", "patch", "delete", "options"}:
            yield path, method.upper(), item[method]


def test_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    invalid = {**DOCUMENT, "paths": {"/": {"get": {"responses": {"200": {}}}}}}
    with pytest.raises(Exception, match='"description" is a required property'):
        schemathesis.openapi.from_dict(invalid).validate()


def test_document_has_exactly_the_routes_of_the_service() -> None:
    documented = {(re.sub("{.*?}", "{}", path), method) for path, method, _ in operations()}
    routed = {
        (re.sub("{.*?}", "{}", route.path), method)
        for route in ROUTES
        for method in route.methods or ()
    }
    assert documented == routed


def test_document_has_every_error_code_with_its_status() -> None:
    assert set(DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == set(
        STATUS
    )
    documented = {}
    # Every operation may return these, so no operation lists them.
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
                assert status < 400 or operation["operationId"] == "headBundle"
                continue
            code = problem["schema"]["allOf"][1]["properties"]["code"]
            codes = code.get("enum") or [code["const"]]
            documented.update(dict.fromkeys(codes, status))
            assert problem["example"]["code"] in codes
            assert problem["example"]["status"] == status
    assert documented == STATUS


def test_served_document_has_the_limits_of_this_server(
    service: Service, start_service: StartService
) -> None:
    response = service.http.get("/openapi.json")
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == DOCUMENT
    assert response.json()["info"]["version"] == version("message-history-server")
    head = service.http.head("/openapi.json")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == response.headers["Content-Length"]

    without_hmac = start_service(require_hmac=False, retention="1h")
    parameters = without_hmac.http.get("/openapi.json").json()["components"]["parameters"]
    assert parameters["Ttl"]["schema"]["maximum"] == 3600
    assert not parameters["Hmac"]["required"]
    assert not parameters["SigningKey"]["required"]


def test_wheel_contains_the_document_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / buildapi.build_wheel(str(tmp_path))) as wheel:
        assert {"service/http/about/openapi.yaml", "service/http/about/page.html"} <= set(
            wheel.namelist()
        )


@dataclass
class RequestCorrector:
    """Gives generated requests the ids, HMACs, digests and ranges of real bundles.

    It only changes requests that match their schema. Of every three, it corrects one completely,
    only the id of the next one, and nothing of the last one.
    """

    bundles: list[tuple[str, str, str]] = field(default_factory=list)
    response_counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    _turns: Iterator[int] = field(default_factory=lambda: itertools.cycle([0, 1, 2]))
    _ranges: Iterator[str] = field(
        default_factory=lambda: itertools.cycle(
            ["bytes=0-0", "bytes=-5", "bytes=2-1", "bytes=9999-"]
        )
    )

    def correct(self, case: Case[Any]) -> None:
        if case.meta is None or not case.meta.generation.mode.is_positive:
            return
        if case.method == "POST":
            self._sign(case)
        elif self.bundles and "X-HMAC" in case.headers and (turn := next(self._turns)) < 2:
            case.path_parameters["id"], *proof = self.bundles[-1]
            if turn == 0:
                case.headers["X-HMAC"], case.headers["X-SIGNING-KEY"] = proof
                if "Range" in case.headers:
                    case.headers["Range"] = next(self._ranges)
                    case.headers.pop("If-Range", None)
                    case.headers.pop("If-Match", None)

    def record(self, case: Case[Any], response: Any) -> None:
        self.response_counts[f"{case.method} {case.path}", response.status_code] += 1
        if (
            case.method == "POST"
            and response.status_code == 200
            and "X-SIGNING-KEY" in case.headers
        ):
            proof = case.headers["X-HMAC"], case.headers["X-SIGNING-KEY"]
            self.bundles.append((response.text, *proof))
        elif case.method == "DELETE" and response.status_code == 204:
            self.bundles.pop()

    def _sign(self, case: Case[Any]) -> None:
        if "X-HMAC" not in case.headers:
            case.headers.pop("X-SIGNING-KEY", None)
        bundle: Any = case.body
        if isinstance(bundle, dict):
            bundle = bundle["file"]
            case.headers.pop("Content-Digest", None)
            case.headers.pop("Repr-Digest", None)
        else:
            # "*/*" stands for all types without an entry of their own. Their body is plain bytes.
            if case.media_type not in ("*/*", "multipart/form-data"):
                case.headers["Content-Type"] = case.media_type
            case.media_type = "application/octet-stream"
        bundle = bundle.data if isinstance(bundle, Binary) else bundle.encode()
        correct_all, key = next(self._turns) == 0, case.headers.get("X-SIGNING-KEY")
        if correct_all and key:
            case.headers["X-HMAC"] = hmac.new(key.encode("latin-1"), bundle, "sha256").hexdigest()
        for name in case.headers.keys() & {"Content-Digest", "Repr-Digest"}:
            # schemathesis takes "0" for a valid value of a header whose pattern has a "=".
            if correct_all or case.headers[name] == "0":
                case.headers[name] = format_digest(hashlib.sha256(bundle).hexdigest())


@pytest.fixture
def corrector() -> Iterator[RequestCorrector]:
    """Changes every request of schemathesis, and counts the responses."""
    corrector = RequestCorrector()

    def before_call(_: object, case: Case[Any], __: dict[str, Any]) -> None:
        corrector.correct(case)

    def after_call(_: object, case: Case[Any], response: Any) -> None:
        corrector.record(case, response)

    def filter_failure(_: object, failure: Failure, case: Case[Any], __: object) -> bool:
        """Ignore a body that violates its schema: if it is not a form, any body is a bundle."""
        assert case.meta is not None
        parts = case.meta.components.items()
        violated = {location for location, part in parts if part.mode.is_negative}
        is_bundle = (
            violated == {ParameterLocation.BODY} and case.media_type != "multipart/form-data"
        )
        return not (is_bundle and isinstance(failure, AcceptedNegativeData))

    hooks = [schemathesis.hook(hook) for hook in (before_call, after_call, filter_failure)]
    yield corrector
    for hook in hooks:
        unregister(hook)


def explore(service: Service, *, examples: int) -> None:
    """Let schemathesis test a server, and fail with all the failures that it reports."""
    config = {
        "seed": 5558,
        "base-url": service.url,
        "checks": CHECKS,
        "generation": {
            "max-examples": examples,
            "database": "none",
            # An HTTP server does not reject unknown headers.
            "allow-extra-parameters": False,
        },
    }
    document = service.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(config))
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


def test_server_behaves_as_documented(service: Service, corrector: RequestCorrector) -> None:
    explore(service, examples=1)
    assert corrector.response_counts.total() >= 200


# This warning is about the size of a generated example, not about the server.
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_server_behaves_as_documented_for_thousands_of_requests(
    service: Service, corrector: RequestCorrector
) -> None:
    """Nearly every documented response occurs at least once."""
    explore(service, examples=600)
    for (request, status), count in sorted(corrector.response_counts.items()):
        print(f"{request} {status}: {count}")
    print(f"{corrector.response_counts.total()} requests")
    assert corrector.response_counts.total() >= 2000
    documented = {
        (f"{method} {path}", status)
        for path, method, operation in operations()
        for status, _ in responses(operation)
        # A healthy server that needs no token does not send these for small bundles.
        if status not in (408, 413, 429, 500, 503) and (path, status) != ("/upload", 401)
    }
    assert documented - corrector.response_counts.keys() == set()
