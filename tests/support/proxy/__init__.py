"""An HTTP proxy between the service and its S3 store, which records requests and injects faults.

    with Proxy(store.endpoint_url) as proxy:
        proxy.faults.append(Fault("UploadPart", Respond(503, "SlowDown"), times=2))
        ...  # send requests to proxy.url
        assert [r.status for r in proxy.requests] == [200, 503, 503, 200, 200]

Without a fault, everything passes unchanged. Heads are not modified, because `Host` is signed.
Informational responses pass too: a request with `Expect: 100-continue` waits for the store's.
Bodies pass chunk by chunk, as fast as their receiver reads. If one side disconnects, the proxy
disconnects from the other. Each exchange opens its own connection to the store, so that no
exchange fails because the store closed an idle connection.

The event loop runs in its own thread. `faults` and `requests` are plain lists: append, clear and
iterate from any thread.
"""

from tests.support.proxy.exchange import CHUNK_SIZE, Exchange
from tests.support.proxy.faults import (
    Action,
    AddRange,
    Delay,
    DropElement,
    DropHeader,
    DropResponse,
    DropSilentRequest,
    Fault,
    Hold,
    KeepCutBody,
    PauseRequest,
    Reset,
    ResetRequest,
    Respond,
    Stall,
    Throttle,
    Truncate,
)
from tests.support.proxy.operations import operation_name
from tests.support.proxy.server import Proxy

__all__ = [
    "CHUNK_SIZE",
    "Action",
    "AddRange",
    "Delay",
    "DropElement",
    "DropHeader",
    "DropResponse",
    "DropSilentRequest",
    "Exchange",
    "Fault",
    "Hold",
    "KeepCutBody",
    "PauseRequest",
    "Proxy",
    "Reset",
    "ResetRequest",
    "Respond",
    "Stall",
    "Throttle",
    "Truncate",
    "operation_name",
]
