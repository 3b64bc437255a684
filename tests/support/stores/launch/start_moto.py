"""moto's S3 on a listening socket: `python start_moto.py FILE_DESCRIPTOR`.

servers.py starts this file in a separate process. In the process of the tests, coverage would trace
moto's code, and moto and the tests would wait for each other's GIL.
"""

import logging
import os
import sys

# Keep all objects in memory: moto would write larger ones to temporary files.
os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 40)

from moto import backends
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
# moto would list its folder of AWS services for each request, a tenth of its CPU time.
SERVICES = list(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: SERVICES
make_server(
    "127.0.0.1",
    0,
    DomainDispatcherApplication(create_backend_app),
    threaded=True,
    request_handler=MotoRequestHandler,
    fd=int(sys.argv[1]),
).serve_forever()
