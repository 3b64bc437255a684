"""The limit on open files, which also counts connections."""

import logging
import math
import resource
from contextlib import suppress

_log = logging.getLogger(__name__)

CONNECTIONS_PER_TRANSFER = 3
"""One from the client and two to S3."""

OTHER_FILES = 200
"""Files and connections that belong to no transfer, such as idle connections and health checks."""


def raise_limit(transfers: int) -> None:
    """Raise this process's limit so that so many transfers can run at once; warn if it is too low.

    Many systems set it to 1,024 for programs that cannot handle more, and let others raise it.
    """
    needed = CONNECTIONS_PER_TRANSFER * transfers + OTHER_FILES
    limit, maximum = (
        math.inf if value == resource.RLIM_INFINITY else value
        for value in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if limit < (allowed := min(needed, maximum)):
        with suppress(OSError, ValueError):  # macOS has another limit, which may be lower.
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(allowed), hard))
            limit = allowed
    if limit < needed:
        _log.warning(
            "this process may open %d files, but HISTORY_MEMORY_BUDGET allows %d transfers, which "
            "need %d: raise the limit (ulimit -Hn), or lower HISTORY_MEMORY_BUDGET",
            limit,
            transfers,
            needed,
        )
