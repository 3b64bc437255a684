"""The drain state: how far the process has got with its graceful shutdown.

`service.cli` creates it and `http.server` sets it. `http.health`, `http.middleware` and
`bundles.service` read it.
"""

from dataclasses import dataclass


@dataclass
class Drain:
    """Set by the server, read by the readiness check, the middleware and the bundle service."""

    begun: bool = False
    """The process is no longer ready, and every response closes its connection."""

    refusing: bool = False
    """New uploads, downloads and deletes are refused with `Draining`."""
