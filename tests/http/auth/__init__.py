"""Tests of `service.http.auth`: upload tokens and JWTs."""
