"""Mutations that the tests have to detect, one or more for each file."""

from tests.infra.mutations.kubernetes import KUBERNETES
from tests.infra.mutations.mutation import Mutation

NGINX = "infra/nginx/nginx.conf"
AWS = "infra/cloudformation"

MUTATIONS = [
    Mutation(
        ".dockerignore",
        "!service\n",
        "",
        "containers/test_dockerfile::test_image_copies_existing_files_that_dockerignore_allows",
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
        "containers/test_dockerfile::test_image_copies_existing_files_that_dockerignore_allows",
    ),
    Mutation(
        "infra/Dockerfile",
        "FROM base\nCOPY --from=dependencies",
        "FROM base\nCOPY --from=dev-dependencies",
        "containers/test_dockerfile::test_default_image_has_no_embedded_store_and_the_version_of_the_service",
    ),
    Mutation(
        "infra/README.md",
        "### HistoryRefusals",
        "### HistoryRefused",
        "test_dashboards::test_every_alert_has_a_runbook_section",
    ),
    *(
        Mutation(
            f"requirements/{lock}.txt",
            f"\n{package}==",
            f"\n# {package}==",
            "install/test_lock_files::test_lock_file_contains_exactly_the_required_packages",
        )
        for lock, package in (
            ("service", "botocore"),
            ("infra-tools", "jsonschema"),
            ("dev", "werkzeug"),
            ("otel", "protobuf"),
            ("test", "iniconfig"),
            ("localstack", "dill"),
            ("ministack", "defusedxml"),
            ("release-tools", "readme-renderer"),
        )
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
    *KUBERNETES,
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
        "infra/nginx/upstream-compose.conf",
        "default history:5558;",
        "default history-1:5558;",
        "stack/test_compose_file::test_nginx_service_uses_the_files_in_infra",
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
        r"|openapi\.json/?)\z",
        r"|openapi\.json/?|metrics)\z",
        "nginx/test_requests::test_no_path_spelling_reaches_an_internal_endpoint",
    ),
    Mutation(
        NGINX,
        '"(token)"',
        '"$request_uri"',
        "nginx/test_requests::test_upload_tokens_are_not_logged",
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
