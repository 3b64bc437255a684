"""The objects agree with the service, its settings and its image."""

import re
from typing import Any

from service.bundles import background
from service.http.server import server
from service.s3 import calls, storage
from service.settings import Settings
from tests.infra.kubernetes.manifests import DOCKERFILE, paths


def test_ports(objects: dict[str, Any], container: Any, settings: Settings) -> None:
    [port] = container["ports"]
    assert port["containerPort"] == settings.port
    assert f"EXPOSE {settings.port}\n" in DOCKERFILE
    [service] = objects["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    [inward] = objects["NetworkPolicy"]["spec"]["ingress"]
    assert inward["ports"] == [{"port": port["name"]}]
    [endpoint] = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]
    assert endpoint["path"] in paths()
    for path in objects["Ingress"]["spec"]["rules"][0]["http"]["paths"]:
        assert path["backend"]["service"] == {
            "name": objects["Service"]["metadata"]["name"],
            "port": {"name": service["name"]},
        }


def test_probes(container: Any) -> None:
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    asked = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert asked == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(asked.values()) <= paths()
    port = container["ports"][0]["name"]
    assert all(probe["httpGet"]["port"] == port for probe in probes.values())
    assert probes["readiness"]["timeoutSeconds"] > storage.PROBE_TIMEOUT


def test_the_ingress_exposes_the_contract_alone(objects: dict[str, Any]) -> None:
    [rule] = objects["Ingress"]["spec"]["rules"]
    assert objects["Ingress"]["spec"]["tls"][0]["hosts"] == [rule["host"]]

    def exposed(path: str) -> bool:
        return any(
            path == one["path"]
            or (one["pathType"] == "Prefix" and path.startswith(f"{one['path'].rstrip('/')}/"))
            for one in rule["http"]["paths"]
        )

    assert {path for path in paths() if not exposed(path)} == {"/readyz", "/metrics"}


def test_the_ingress_lets_bundles_through(objects: dict[str, Any], settings: Settings) -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    notes = {
        name.removeprefix(prefix): value
        for name, value in objects["Ingress"]["metadata"]["annotations"].items()
    }
    longest = calls.CALL_TIMEOUT + settings.part_size / calls.MIN_UPLOAD_RATE
    assert int(notes.pop("proxy-read-timeout")) > longest
    assert int(notes.pop("proxy-send-timeout")) > longest
    assert notes == {
        "proxy-request-buffering": "off",
        "proxy-buffering": "off",
        "proxy-body-size": "0",
        "proxy-connect-timeout": "5",
        "ssl-redirect": "false",
        "enable-access-log": "false",
    }


def test_settings(objects: dict[str, Any], settings: Settings) -> None:
    for name in objects["ConfigMap"]["data"]:
        assert name.startswith("AWS_") or (
            name.startswith("HISTORY_")
            and name.removeprefix("HISTORY_").lower() in Settings.model_fields
        )
    assert settings.bucket == "my-histories"


def test_a_pod_has_time_to_drain(pod: Any, container: Any, settings: Settings) -> None:
    drained = settings.drain_delay + server.LAST_REQUESTS + settings.drain_timeout
    assert pod["spec"]["terminationGracePeriodSeconds"] >= drained + background.CLOSE_TIMEOUT
    # A hook would have to be counted.
    assert "lifecycle" not in container


def test_updates_never_lack_a_replica(objects: dict[str, Any]) -> None:
    rolling = objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}
    assert objects["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > 1
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_a_pod_has_the_memory_that_the_service_may_take(container: Any, settings: Settings) -> None:
    memory = container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["memory"] == memory
    assert int(memory.removesuffix("Mi")) << 20 >= settings.memory_budget + (160 << 20)


def test_nobodys_rights(objects: dict[str, Any], pod: Any, container: Any) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, flags=re.MULTILINE)
    assert user
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[2]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    # Else a Service called history sets HISTORY_PORT.
    assert pod["spec"]["enableServiceLinks"] is False
    assert objects["Namespace"]["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }


def test_who_may_talk_to_whom(objects: dict[str, Any]) -> None:
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    name = "kubernetes.io/metadata.name"
    [inward] = policy["ingress"]
    sources = [source["namespaceSelector"]["matchLabels"][name] for source in inward["from"]]
    assert sources == ["ingress-nginx", "monitoring"]
    outward = {port["port"]: rule.get("to") for rule in policy["egress"] for port in rule["ports"]}
    assert outward == {53: None, 443: None, 80: [{"ipBlock": {"cidr": "169.254.170.23/32"}}]}
