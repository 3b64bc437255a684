"""The Kubernetes objects match the service, its settings and its image."""

import re
from typing import Any

from service.bundles import background
from service.cli import main
from service.http.server import server
from service.s3 import calls, storage
from service.settings import Settings
from tests.infra.kubernetes.manifests import DOCKERFILE, route_paths


def test_ports_match_the_service_and_each_other(
    objects: dict[str, Any], container: Any, settings: Settings
) -> None:
    [port] = container["ports"]
    assert port["containerPort"] == settings.port
    assert f"EXPOSE {settings.port}\n" in DOCKERFILE
    [service] = objects["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    [ingress] = objects["NetworkPolicy"]["spec"]["ingress"]
    assert ingress["ports"] == [{"port": port["name"]}]
    [endpoint] = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]
    assert endpoint["path"] in route_paths()
    for path in objects["Ingress"]["spec"]["rules"][0]["http"]["paths"]:
        assert path["backend"]["service"] == {
            "name": objects["Service"]["metadata"]["name"],
            "port": {"name": service["name"]},
        }


def test_sweep_runs_like_the_service(objects: dict[str, Any], pod: Any, container: Any) -> None:
    """It has the same image, settings and restrictions, but gets no requests."""
    sweep = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    [sweeper] = sweep["spec"]["containers"]
    [command] = sweeper["args"]
    assert command == "sweep"
    assert command in main.commands
    for name in ("image", "envFrom", "securityContext"):
        assert sweeper[name] == container[name]
    for name in (
        *("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"),
        "securityContext",
    ):
        assert sweep["spec"][name] == pod["spec"][name]
    assert sweep["metadata"]["labels"] != pod["metadata"]["labels"]


def test_probes_call_the_health_checks(container: Any) -> None:
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(paths.values()) <= route_paths()
    port = container["ports"][0]["name"]
    assert all(probe["httpGet"]["port"] == port for probe in probes.values())
    assert probes["readiness"]["timeoutSeconds"] > storage.READINESS_TIMEOUT


def test_ingress_exposes_only_public_paths(objects: dict[str, Any]) -> None:
    [rule] = objects["Ingress"]["spec"]["rules"]
    assert objects["Ingress"]["spec"]["tls"][0]["hosts"] == [rule["host"]]

    def is_exposed(path: str) -> bool:
        return any(
            path == entry["path"]
            or (entry["pathType"] == "Prefix" and path.startswith(f"{entry['path'].rstrip('/')}/"))
            for entry in rule["http"]["paths"]
        )

    assert {path for path in route_paths() if not is_exposed(path)} == {"/readyz", "/metrics"}


def test_ingress_streams_bundles_of_any_size(objects: dict[str, Any], settings: Settings) -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = {
        name.removeprefix(prefix): value
        for name, value in objects["Ingress"]["metadata"]["annotations"].items()
    }
    longest_call = calls.CALL_TIMEOUT + settings.part_size / calls.MIN_UPLOAD_RATE
    assert int(annotations.pop("proxy-read-timeout")) > longest_call
    assert int(annotations.pop("proxy-send-timeout")) > longest_call
    assert annotations == {
        "proxy-request-buffering": "off",
        "proxy-buffering": "off",
        "proxy-body-size": "0",
        "proxy-connect-timeout": "5",
        "ssl-redirect": "false",
        "enable-access-log": "false",
    }


def test_config_map_contains_valid_settings(objects: dict[str, Any], settings: Settings) -> None:
    for name in objects["ConfigMap"]["data"]:
        assert name.startswith("AWS_") or (
            name.startswith("HISTORY_")
            and name.removeprefix("HISTORY_").lower() in Settings.model_fields
        )
    assert settings.bucket == "my-histories"


def test_pod_has_enough_time_to_shut_down(pod: Any, container: Any, settings: Settings) -> None:
    drain_time = settings.drain_delay + server.LAST_REQUESTS + settings.drain_timeout
    assert pod["spec"]["terminationGracePeriodSeconds"] >= drain_time + background.CLOSE_TIMEOUT
    # The time of a preStop hook would have to be added.
    assert "lifecycle" not in container


def test_updates_and_evictions_keep_a_replica_running(objects: dict[str, Any]) -> None:
    rolling_update = objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling_update == {"maxSurge": 1, "maxUnavailable": 0}
    assert objects["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > 1
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_memory_limit_fits_the_memory_budget(container: Any, settings: Settings) -> None:
    memory = container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["memory"] == memory
    assert int(memory.removesuffix("Mi")) << 20 >= settings.memory_budget + (160 << 20)


def test_pod_runs_without_privileges(objects: dict[str, Any], pod: Any, container: Any) -> None:
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
    # Otherwise Kubernetes sets HISTORY_PORT for a Service called history.
    assert pod["spec"]["enableServiceLinks"] is False
    assert objects["Namespace"]["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }


def test_network_policy_allows_only_the_needed_connections(objects: dict[str, Any]) -> None:
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    name = "kubernetes.io/metadata.name"
    [ingress] = policy["ingress"]
    sources = [source["namespaceSelector"]["matchLabels"][name] for source in ingress["from"]]
    assert sources == ["ingress-nginx", "monitoring"]
    egress = {port["port"]: rule.get("to") for rule in policy["egress"] for port in rule["ports"]}
    assert egress == {53: None, 443: None, 80: [{"ipBlock": {"cidr": "169.254.170.23/32"}}]}
