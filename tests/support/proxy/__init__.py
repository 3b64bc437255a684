"""A recording, fault-injecting HTTP proxy for the way between the service and its S3 store.

    with Proxy(store.endpoint_url) as proxy:
        proxy.faults.append(Fault("UploadPart", Respond(503, "SlowDown"), times=2))
        ...  # whatever talks to proxy.url
        assert [r.status for r in proxy.requests] == [200, 503, 503, 200, 200]

What no fault asks for goes through unchanged: heads as they came (`Host` is signed), informational
answers (`Expect: 100-continue` waits for the store's word), bodies piece by piece at the pace of
whoever reads them, and a disconnect on either side as a disconnect on the other. Every exchange
has a connection of its own to the store, so none fails because an idle one was closed.

The loop runs in a thread of its own. `faults` and `requests` are plain lists: append, clear and
iterate from any thread.
"""

from tests.support.proxy.exchange import CHUNK, Exchange
from tests.support.proxy.faults import (
    Action,
    AddRange,
    Delay,
    Drip,
    Fault,
    IgnoreRange,
    Reset,
    ResetRequest,
    Respond,
    Stall,
    Swallow,
    Truncate,
    Withhold,
)
from tests.support.proxy.operations import operation_name
from tests.support.proxy.server import Proxy

__all__ = [
    "CHUNK",
    "Action",
    "AddRange",
    "Delay",
    "Drip",
    "Exchange",
    "Fault",
    "IgnoreRange",
    "Proxy",
    "Reset",
    "ResetRequest",
    "Respond",
    "Stall",
    "Swallow",
    "Truncate",
    "Withhold",
    "operation_name",
]
