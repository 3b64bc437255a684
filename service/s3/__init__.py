"""Everything that talks to S3. No other package imports botocore.

storage       bundles as S3 objects: implements `bundles.access.Storage`
bodies        request and response bodies as streams
client        the S3 client of the process and its configuration
reads         limits on what the client reads ahead
retries       which requests are retried, and when
calls         each call with its timeout, metrics and translated errors

bucket        the `init-bucket` command: creates and configures the bucket
check         the `check` command: reports problems with the bucket
devstore      the embedded store of `serve --dev`
"""
