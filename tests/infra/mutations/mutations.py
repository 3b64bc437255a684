"""Mutations that the tests have to detect, one or more for each file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A change that breaks a file, and the test that has to detect it.

    `original` occurs exactly once in the file.
    """

    file: str
    original: str
    replacement: str
    test: str
    """`module::test`, with the module as a path in tests/infra.

    In a parametrized test, one failing case is enough.
    """

    @property
    def node(self) -> str:
        module, _, name = self.test.partition("::")
        return f"tests/infra/{module}.py::{name}"

    def __str__(self) -> str:
        return f"{self.file}-{self.test.partition('::')[2]}"


BASE = "infra/kubernetes/base"
EXAMPLE = "infra/kubernetes/example"
NGINX = "infra/nginx/nginx.conf"
AWS = "infra/cloudformation"

MUTATIONS = [
    Mutation(
        ".dockerignore",
        "!service\n",
        "",
        "test_image::test_image_copies_existing_files_that_dockerignore_allows",
    ),
    Mutation(
        "localstack.yml",
        "condition: service_completed_successfully",
        "condition: service_started",
        "stack/test_compose_file::test_each_service_waits_for_its_dependencies",
    ),
    Mutation(
        "infra/Dockerfile",
        "USER 65532:65532",
        "USER root",
        "test_image::test_image_copies_existing_files_that_dockerignore_allows",
    ),
    Mutation(
        "infra/README.md",
        "### HistoryRefusals",
        "### HistoryRefused",
        "test_dashboards::test_every_alert_has_a_runbook_section",
    ),
    Mutation(
        "requirements/service.txt",
        "\nbotocore==",
        "\n# botocore==",
        "install/test_lock_files::test_lock_file_contains_exactly_the_required_packages",
    ),
    Mutation(
        "requirements/infra-tools.txt",
        "\njsonschema==",
        "\n# jsonschema==",
        "install/test_lock_files::test_lock_file_contains_exactly_the_required_packages",
    ),
    Mutation(
        "requirements/dev.txt",
        "\nwerkzeug==",
        "\n# werkzeug==",
        "install/test_lock_files::test_lock_file_contains_exactly_the_required_packages",
    ),
    Mutation(
        "requirements/test.txt",
        "\niniconfig==",
        "\n# iniconfig==",
        "install/test_lock_files::test_lock_file_contains_exactly_the_required_packages",
    ),
    Mutation(
        "requirements/localstack.txt",
        "\ndill==",
        "\n# dill==",
        "install/test_lock_files::test_lock_file_contains_exactly_the_required_packages",
    ),
    Mutation(
        "requirements/ministack.txt",
        "\ndefusedxml==",
        "\n# defusedxml==",
        "install/test_lock_files::test_lock_file_contains_exactly_the_required_packages",
    ),
    # -- AWS
    Mutation(
        f"{AWS}/bucket.yaml",
        '"7": { Days: 8 }',
        '"7": { Days: 7 }',
        "cloudformation/test_bucket::test_lifecycle_matches_every_allowed_retention",
    ),
    Mutation(
        f"{AWS}/bucket.yaml",
        'Bool: { "aws:SecureTransport": "false" }',
        'Bool: { "aws:SecureTransport": "true" }',
        "cloudformation/test_bucket::test_bucket_policy_denies_plain_http_and_wrong_encryption",
    ),
    Mutation(
        f"{AWS}/service.yaml",
        "                  - s3:PutObjectTagging # S3Storage.put, put_tags\n",
        "",
        "cloudformation/test_permissions::test_task_role_allows_exactly_the_actions_that_the_code_needs",
    ),
    Mutation(
        f"{AWS}/service.yaml",
        "StopTimeout: 60",
        "StopTimeout: 30",
        "cloudformation/test_task::test_task_has_enough_time_to_shut_down",
    ),
    # -- Kubernetes
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
        "  - cron-job.yaml\n",
        "",
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
    # -- nginx
    Mutation(
        "infra/nginx/listen.conf",
        "listen 5558;",
        "listen 127.0.0.1:5558;",
        "stack/test_compose_file::test_nginx_service_uses_the_files_in_infra",
    ),
    Mutation(
        "infra/nginx/listen-tls.conf",
        "ssl_session_tickets       off;",
        "ssl_session_tickets       on;",
        "nginx/test_tls::test_tls_has_forward_secrecy_and_plain_http_is_refused",
    ),
    Mutation(
        "infra/nginx/upstream.conf",
        "keepalive_timeout 2s;",
        "keepalive_timeout 60s;",
        "nginx/test_configuration::test_nginx_limits_fit_those_of_the_service",
    ),
    Mutation(
        "infra/nginx/upstream.conf",
        "history-2:5558 max_fails=3 fail_timeout=1s;",
        "history-2:5558;",
        "nginx/test_retries::test_recovered_replica_gets_requests_soon",
    ),
    Mutation(
        NGINX,
        "proxy_request_buffering off;",
        "proxy_request_buffering on;",
        "nginx/test_requests::test_nginx_writes_no_bundle_to_disk",
    ),
    Mutation(
        NGINX,
        "proxy_buffering         off;",
        "proxy_buffering         on;",
        "nginx/test_requests::test_nginx_writes_no_bundle_to_disk",
    ),
    Mutation(
        NGINX,
        "error timeout;",
        "error timeout non_idempotent;",
        "nginx/test_retries::test_post_is_not_retried_if_the_replica_dies",
    ),
    Mutation(
        NGINX,
        "real_ip_recursive on;",
        "real_ip_recursive off;",
        "nginx/test_limits::test_client_address_is_only_accepted_from_a_trusted_proxy",
    ),
    Mutation(
        NGINX,
        r"|openapi\.json/?)?\z",
        r"|openapi\.json/?|metrics)?\z",
        "nginx/test_requests::test_no_path_spelling_reaches_an_internal_endpoint",
    ),
    # -- Prometheus and Grafana
    Mutation(
        "infra/dashboards/history.json",
        "history_memory_waiters{",
        "history_memory_waiting{",
        "test_dashboards::test_panels_query_exposed_metrics_and_labels",
    ),
    Mutation(
        "infra/prometheus/adapter.yaml",
        "/ history_memory_budget_bytes{",
        "/ history_memory_size_bytes{",
        "test_dashboards::test_adapter_queries_exposed_metrics",
    ),
    Mutation(
        "infra/prometheus/alerts.yaml",
        "(history_memory_waiters)",
        "(history_memory_waiting)",
        "test_dashboards::test_alert_queries_exposed_metrics_and_links_to_the_runbook",
    ),
    Mutation(
        "infra/prometheus/alerts.yaml",
        "(rate(history_s3_request_seconds_count[5m])) > 0.05",
        "(rate(history_s3_request_seconds_count[5m])) > 0.5",
        "test_dashboards::test_promtool_accepts_the_alerts",
    ),
    Mutation(
        "infra/prometheus/alerts_test.yaml",
        'way="receipt", outcome="held"}\n        values: 0+80x60',
        'way="receipt", outcome="accepted"}\n        values: 0+80x60',
        "test_dashboards::test_every_alert_is_tested_firing_and_silent",
    ),
]
