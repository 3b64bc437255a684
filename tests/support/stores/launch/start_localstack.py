# mypy: disable-error-code="import-not-found"
"""LocalStack's S3 on a bound socket: `python start_localstack.py FILE_DESCRIPTOR`.

servers.py starts this file with the Python interpreter of LocalStack's virtual environment.

LocalStack itself listens on every interface, whatever host GATEWAY_LISTEN has, and needs a port
number, which another process may use by then. The inherited socket is already bound to loopback.
"""

import socket
import sys
from typing import Any

from localstack.aws import spec
from localstack.runtime.main import main
from twisted.internet import endpoints

listener = socket.socket(fileno=int(sys.argv[1]))


def use_listener(reactor: object, _port: int) -> Any:
    listener.listen(1024)
    return endpoints.AdoptedStreamServerEndpoint(reactor, listener.fileno(), socket.AF_INET)


endpoints.TCP4ServerEndpoint = use_listener
# Building the index of all AWS services took four of the six seconds of a start.
spec.list_services = lambda: [spec.load_service("s3")]
main()
