"""What operators see: metrics, log lines, and where each request spends its time.

metrics    Prometheus metrics of one process
logs       log lines as text or JSON
timing     the current request: its id and the time it waits for client, memory and S3
tracing    distributed traces: `traceparent`, and the spans of a request
otlp       sends spans to a collector, with OpenTelemetry's SDK
"""
