"""Tests of `service.http.server`: connections, their limits, and the graceful shutdown."""
