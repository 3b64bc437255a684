"""The HTTP API. Knows nothing of S3.

routes          one function for each route of the API
responses       a bundle as a streamed response
forms           multipart/form-data as a stream
problems        errors as application/problem+json
about           the page at `/` and the OpenAPI document
health          the readiness check
slow_clients    timeouts and the minimum average rate
auth            who may upload: upload tokens and JWTs
middleware      what runs around every request: paths, CORS, early responses, draining
access_log      one log line and one metric observation for each request
server          uvicorn with graceful shutdown, limits and timeouts
"""
