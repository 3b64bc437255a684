"""The service in a thread of this process, on a free port, with a real S3 server."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from service.app import create_app
from service.drain import Drain
from service.http.server.listener import listen
from service.http.server.server import Server
from service.s3.bucket import initialization
from service.s3.client import connect
from service.s3.records import (
    Records,
    fields_in_metadata,
    fields_in_tags,
    record_arguments,
    tag_set,
)
from service.settings import Settings, aws_region
from service.telemetry.tracing import open_tracer
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.stores import Store
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import multipart_upload_keys, new_bucket, object_keys

SMALL_PART = 5 << 20
"""The smallest part size that S3 accepts. Most tests use it, because it is the fastest to fill."""


@dataclass
class Service:
    """A running service, with methods to send requests to it and to inspect its bucket."""

    url: str
    bucket: str
    prefix: str
    http: httpx.Client = field(repr=False)
    s3: Any = field(repr=False)
    records: Records
    server: Server = field(repr=False)

    def async_client(self) -> httpx.AsyncClient:
        """Return a client without a limit on its connections."""
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            base_url=self.url, timeout=280, trust_env=False, verify=False, limits=limits
        )

    def upload(self, content: bytes, hmac: str | None = None, *, chunked: bool = False) -> str:
        """Upload a bundle, with its length unless `chunked`. Return its id."""
        headers = {} if hmac is None else {"X-HMAC": hmac}
        body = iter([content]) if chunked else content
        response = self.http.post("/upload", content=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.text

    def fetch(self, bundle_id: str, proof: Mapping[str, str] | None = None) -> httpx.Response:
        return self.http.get(f"/files/{bundle_id}", headers=proof)

    def head(self, bundle_id: str, proof: Mapping[str, str] | None = None) -> httpx.Response:
        return self.http.head(f"/files/{bundle_id}", headers=proof)

    def metrics(self) -> dict[str, float]:
        """Return the value of every metric, by its name with its labels."""
        response = self.http.get("/metrics")
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        samples = re.findall(r"^(history_\S+) (\S+)$", response.text, re.MULTILINE)
        return {name: float(value) for name, value in samples}

    def objects(self) -> list[str]:
        return object_keys(self.s3, self.bucket)

    def delete_objects(self) -> None:
        for key in self.objects():
            self.s3.delete_object(Bucket=self.bucket, Key=key)

    def multipart_uploads(self) -> list[str]:
        return multipart_upload_keys(self.s3, self.bucket)

    def abort_multipart_uploads(self) -> None:
        for upload in self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []):
            self.s3.abort_multipart_upload(
                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )

    def record(self, bundle_id: str) -> dict[str, str]:
        """Return the fields of the record, from the object's tags or metadata."""
        location = {"Bucket": self.bucket, "Key": f"{self.prefix}{bundle_id}"}
        if self.records == "metadata":
            return fields_in_metadata(self.s3.head_object(**location)["Metadata"])
        return fields_in_tags(self.s3.get_object_tagging(**location))

    def put_record(self, bundle_id: str, fields: Mapping[str, str]) -> None:
        location = {"Bucket": self.bucket, "Key": f"{self.prefix}{bundle_id}"}
        if self.records == "metadata":
            self.s3.copy_object(
                **location,
                CopySource=location,
                MetadataDirective="REPLACE",
                **record_arguments(fields, "metadata"),
            )
        elif fields:
            self.s3.put_object_tagging(**location, Tagging=tag_set(fields))
        else:
            self.s3.delete_object_tagging(**location)


class StartService(Protocol):
    """Start a service with a new bucket, or with the one in the settings.

    Settings have their names without HISTORY_. `endpoint_url` may be that of a proxy to the store.
    """

    def __call__(
        self,
        *,
        endpoint_url: str | None = None,
        clock: Callable[[], float] | None = None,
        **settings: object,
    ) -> Service: ...


def init_bucket(store: Store, settings: Settings) -> list[str]:
    """Do what the command `init-bucket` does. Return the lines that it prints.

    Unless the settings say where records are, they are where the store keeps them.
    """
    records = settings.records if "records" in settings.model_fields_set else store.records

    async def prepare() -> list[str]:
        async with connect(aws_region()) as client:
            lines = initialization.initialize(
                client,
                bucket=settings.bucket,
                prefix=settings.prefix,
                retention=settings.retention,
                records=records,
            )
            return [line async for line in lines]

    with aws_environment(store):
        return asyncio.run(prepare())


@contextmanager
def running_service(
    store: Store,
    s3: Any,
    *,
    endpoint_url: str | None = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> Iterator[Service]:
    """Run a service in a thread, with a new bucket unless the settings name one.

    When this returns, the service has tried what its store keeps.
    """
    if "bucket" not in settings:
        settings["bucket"] = new_bucket(s3)
    settings.setdefault("records", store.records)
    config = Settings(**settings)
    drain = Drain()
    app = create_app(config, drain=drain, tracer=open_tracer(), clock=clock or time.time)
    started = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        server = Server(
            app,
            listener,
            drain,
            drain_delay=0,
            drain_timeout=10,
            read_timeout=config.read_timeout,
            ready=started.set,
        )
        thread = threading.Thread(target=server.run)
        with aws_environment(store, endpoint_url):
            thread.start()
            assert started.wait(20)
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        try:
            # The client does not verify TLS: reading the certificates would take longer than the
            # start of the service.
            with httpx.Client(
                base_url=url,
                timeout=60,
                trust_env=False,
                verify=False,
                event_hooks=LEAK_DETECTOR.httpx_hooks,
            ) as http:
                http.get("/readyz")
                yield Service(url, config.bucket, config.prefix, http, s3, config.records, server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
