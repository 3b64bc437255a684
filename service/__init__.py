"""A history server for XMTP: encrypted bundles in an S3 bucket, downloaded with an HMAC proof.

Imports point downwards only:

    __main__, cli       the commands `serve`, `init-bucket` and `check`
    app                 builds the application from the settings, in one function
    http | s3           the HTTP API, and everything that talks to S3; they do not know each other
    bundles             upload, download and delete; knows neither the web framework nor botocore
    telemetry           metrics, log lines, and where each request spends its time
    settings, drain     the environment, read once; how far a graceful shutdown has got
    errors              the error tree

`http` turns requests into calls of `bundles.service` and its results into responses. It holds the
routes, the middleware, the access log, error responses, timeouts for slow clients, and the server.

`bundles` is the core. `service` authorizes downloads, `upload` sends parts while others arrive,
`memory` limits what all transfers hold, and `background` cleans up after failures. `proof`,
`claims`, `record` and `ranges` are pure: `proof` holds all cryptography.

`s3` implements the storage interface of `bundles` on one bucket, with timeouts, retries and
translated errors. It also creates and checks buckets, and brings the embedded development store.

`telemetry` has the metrics, the log format, and the timing of the current request.
"""

__version__ = "0.1.0"
