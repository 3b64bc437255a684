"""moto's S3 on a listening socket: `python moto_launch.py FILE_DESCRIPTOR`.

tests/stores.py starts this file: a process of its own, as coverage would trace all that moto does
in the tests' own, and each of them would wait for the other's turn in the interpreter.
"""

import logging
import sys

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
make_server(
    "127.0.0.1",
    0,
    DomainDispatcherApplication(create_backend_app),
    threaded=True,
    request_handler=MotoRequestHandler,
    fd=int(sys.argv[1]),
).serve_forever()
