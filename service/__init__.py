"""A history server for XMTP: encrypted bundles in an S3 bucket, released against their proof.

    __main__ › cli          commands: arguments → calls → exit codes
    app                     all the wiring in one function
    server, connection      uvicorn, with what it lacks: draining, and a bound on every wait
    bucket, check           making a bucket ready; telling what is wrong with one
    devstore                an embedded S3 to develop with
    api, middleware         the wire contract; what wraps every request
    storage                 bundles as S3 objects
    bodies, client          their bytes both ways; calls to S3, bounded and translated
    parser                  requests as h11 reads them, with limits on what one costs
    problems, forms, pages  errors as problem+json; forms as a stream; what it says of itself
    bundles, journal        the use cases: deposit, withdraw, discard; a line for every request
    upload, content         one bundle on its way into S3, in parts; and on its way out
    background              work that goes on when its request has ended
    claim, proof            pure: what an upload says of itself; HMACs, receipts, digests
    ranges, record          pure: ranges and conditions; a bundle's record ↔ tags, expiry
    budget, pace            the bytes that all transfers may hold; how slow a client may be
    leftovers               what S3 would not remove at once, until it does
    readiness, metrics      whether to send requests here; what is counted
    trace                   the request under way, and what it waits for
    settings, logs, errors  the environment, read once; log lines; the error tree

Imports point downwards only. Who reads for the cryptography opens `proof`, for AWS `storage`.
"""

__version__ = "0.1.0"
