"""Mutations of the Kubernetes manifests and of the Helm chart."""

from tests.infra.mutations.mutation import Mutation

BASE = "infra/kubernetes/base"
EXAMPLE = "infra/kubernetes/example"
CHART = "infra/helm"

KUBERNETES = [
    Mutation(
        f"{BASE}/deployment.yaml",
        "terminationGracePeriodSeconds: 45",
        "terminationGracePeriodSeconds: 30",
        "kubernetes/test_workload::test_pod_has_enough_time_to_shut_down",
    ),
    Mutation(
        f"{BASE}/deployment.yaml",
        "periodSeconds: 1\n",
        "periodSecond: 1\n",
        "kubernetes/test_manifests::test_objects_match_the_kubernetes_schemas",
    ),
    Mutation(
        f"{BASE}/disruption-budget.yaml",
        "maxUnavailable: 1",
        "maxUnavailable: 0",
        "kubernetes/test_workload::test_updates_and_evictions_keep_a_replica_running",
    ),
    Mutation(
        f"{BASE}/ingress.yaml",
        'proxy-request-buffering: "off"',
        'proxy-request-buffering: "on"',
        "kubernetes/test_workload::test_ingress_streams_bundles_of_any_size",
    ),
    Mutation(
        f"{BASE}/kustomization.yaml",
        "  - network-policy.yaml\n",
        "",
        "kubernetes/test_manifests::test_every_file_is_listed_in_a_kustomization",
    ),
    Mutation(
        f"{BASE}/network-policy.yaml",
        "- port: http",
        "- port: 80",
        "kubernetes/test_workload::test_ports_match_the_service_and_each_other",
    ),
    Mutation(
        f"{BASE}/scaling.yaml",
        "minReplicas: 2",
        "minReplicas: 1",
        "kubernetes/test_workload::test_updates_and_evictions_keep_a_replica_running",
    ),
    Mutation(
        f"{BASE}/service-account.yaml",
        "automountServiceAccountToken: false",
        "automountServiceAccountToken: true",
        "kubernetes/test_workload::test_pod_runs_without_privileges",
    ),
    Mutation(
        f"{BASE}/service.yaml",
        "targetPort: http",
        "targetPort: 80",
        "kubernetes/test_workload::test_ports_match_the_service_and_each_other",
    ),
    Mutation(
        f"{BASE}/settings.env",
        "HISTORY_DRAIN_TIMEOUT=30s",
        "HISTORY_DRAIN_TIMEOUT=60s",
        "kubernetes/test_workload::test_pod_has_enough_time_to_shut_down",
    ),
    Mutation(
        "infra/kubernetes/sweeping/cron-job.yaml",
        "                - sweep\n",
        "                - serve\n",
        "kubernetes/test_workload::test_sweep_runs_like_the_service",
    ),
    Mutation(
        "infra/kubernetes/sweeping/kustomization.yaml",
        "resources:\n  - cron-job.yaml\n",
        "resources: []\n",
        "kubernetes/test_manifests::test_every_file_is_listed_in_a_kustomization",
    ),
    Mutation(
        f"{EXAMPLE}/kustomization.yaml",
        "namespace: history\n",
        "namespace: default\n",
        "kubernetes/test_manifests::test_objects_refer_to_each_other_by_the_right_names",
    ),
    Mutation(
        f"{EXAMPLE}/namespace.yaml",
        "enforce: restricted",
        "enforce: baseline",
        "kubernetes/test_workload::test_pod_runs_without_privileges",
    ),
    Mutation(
        "infra/kubernetes/monitoring/kustomization.yaml",
        "resources:\n  - service-monitor.yaml\n",
        "resources: []\n",
        "kubernetes/test_manifests::test_every_file_is_listed_in_a_kustomization",
    ),
    Mutation(
        "infra/kubernetes/monitoring/service-monitor.yaml",
        "path: /metrics",
        "path: /prometheus",
        "kubernetes/test_workload::test_ports_match_the_service_and_each_other",
    ),
    Mutation(
        "infra/kubernetes/scaling-by-memory/kustomization.yaml",
        "path: memory.yaml",
        "path: memory.yml",
        "kubernetes/test_manifests::test_every_file_is_listed_in_a_kustomization",
    ),
    Mutation(
        "infra/kubernetes/scaling-by-memory/memory.yaml",
        "name: history_memory_use\n",
        "name: history_memory_used\n",
        "kubernetes/test_manifests::test_scaling_uses_the_metric_of_the_adapter",
    ),
    # -- Helm
    Mutation(
        f"{CHART}/Chart.yaml",
        "version: 0.1.0",
        "version: 0.0.9",
        "kubernetes/test_chart::test_chart_has_the_version_of_the_service",
    ),
    Mutation(
        f"{CHART}/README.md",
        "| `replicas` | `2` |",
        "| `replicas` | `3` |",
        "kubernetes/test_chart::test_every_value_is_documented_with_its_default",
    ),
    Mutation(
        f"{CHART}/values.yaml",
        "  HISTORY_DRAIN_TIMEOUT: 30s",
        "  HISTORY_DRAIN_TIMEOUT: 60s",
        "kubernetes/test_chart::test_default_values_are_those_of_the_manifests",
    ),
    Mutation(
        f"{CHART}/values.yaml",
        "maxReplicas: 10",
        "maxReplicas: 5",
        "kubernetes/test_chart::test_templates_match_the_manifests",
    ),
    Mutation(
        f"{CHART}/values.schema.json",
        '"HISTORY_RECORDS": { "enum": ["tags", "metadata"] },',
        '"HISTORY_RECORDS": { "enum": ["tags"] },',
        "kubernetes/test_chart::test_schema_accepts_the_settings_that_the_service_accepts",
    ),
    Mutation(
        f"{CHART}/templates/_helpers.tpl",
        '"m" 60',
        '"m" 6',
        "kubernetes/test_rendering::test_every_other_value_has_its_effect",
    ),
    Mutation(
        f"{CHART}/templates/NOTES.txt",
        "-m service check",
        "-m service serve",
        "kubernetes/test_chart::test_documented_commands_install_and_check_the_chart",
    ),
    *(
        Mutation(
            f"{CHART}/templates/{template}.yaml",
            original,
            replacement,
            "kubernetes/test_chart::test_templates_match_the_manifests",
        )
        for template, original, replacement in (
            ("deployment", "periodSeconds: 1\n", "periodSeconds: 10\n"),
            ("disruption-budget", "maxUnavailable: 1", "maxUnavailable: 0"),
            ("ingress", "path: /files", "path: /file"),
            ("network-policy", "- port: http", "- port: 80"),
            ("scaling", "averageUtilization:", "averageValue:"),
            ("service", "targetPort: http", "targetPort: 80"),
            ("service-account", "Token: false", "Token: true"),
            ("service-monitor", "path: /metrics", "path: /prometheus"),
            ("settings", "  name: history\n", "  name: settings\n"),
            ("sweep", "concurrencyPolicy: Forbid", "concurrencyPolicy: Allow"),
        )
    ),
]
