"""Everything that talks to S3. No other package imports botocore.

storage       bundles as S3 objects: implements `bundles.access.Storage`
bodies        request and response bodies as streams
client        the S3 client of the process and its configuration
reads         limits on what the client reads ahead
retries       which requests are retried, and when
calls         each call with its timeout, metrics and translated errors
records       where a bundle's record is: in tags or in metadata
capabilities  what the store keeps, which is tried with probe objects

bucket        the commands `init-bucket`, `check` and `sweep`
devstore      the embedded store of `serve --dev`
"""
