# mypy: disable-error-code="import-not-found"
"""LocalStack's S3 on a bound socket: `python localstack_launch.py FILE_DESCRIPTOR`.

servers.py starts this file, with the interpreter that LocalStack is installed for. By itself
LocalStack binds every interface, whatever host GATEWAY_LISTEN names, and needs to be told a port,
which another process may have taken by then. A socket handed over is on loopback and already ours.
"""

import socket
import sys
from typing import Any

from localstack.aws import spec
from localstack.runtime.main import main
from twisted.internet import endpoints

listener = socket.socket(fileno=int(sys.argv[1]))


def adopt(reactor: object, _port: int) -> Any:
    listener.listen(1024)
    return endpoints.AdoptedStreamServerEndpoint(reactor, listener.fileno(), socket.AF_INET)


endpoints.TCP4ServerEndpoint = adopt
# An index of all of AWS's services, built at every start, took four of six seconds.
spec.list_services = lambda: [spec.load_service("s3")]
main()
