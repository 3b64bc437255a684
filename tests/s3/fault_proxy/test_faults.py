"""The faults of the fault proxy."""

import threading
import time
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.s3.fault_proxy.scripted_store import FOREVER, GET, OBJECT, PUT, object_keys, read_head
from tests.support.clients.sockets import connect_to, read_exactly, read_until_closed
from tests.support.polling import wait_until
from tests.support.proxy import (
    Delay,
    DropResponse,
    Fault,
    Hold,
    Proxy,
    Reset,
    ResetRequest,
    Respond,
    Stall,
    Throttle,
    Truncate,
)
from tests.support.stores import Store


def test_fault_strikes_only_the_requests_that_are_due(proxy: Proxy) -> None:
    proxy.faults += [
        Fault("HeadObject", Respond(503), after=1, every=2, times=2),
        Fault("GetObject", Respond(500, "InternalError"), times=None),
        Fault(None, Respond(501), after=7),
    ]
    with httpx.Client(base_url=proxy.url) as client:
        heads = [client.head("/bucket/object").status_code for _ in range(7)]
        gets = [client.get("/bucket/object").status_code for _ in range(3)]
    assert heads == [200, 503, 200, 503, 200, 200, 200]
    assert gets == [500, 500, 500]
    assert [fault.injected for fault in proxy.faults] == [2, 3, 0]


def test_respond_sends_an_error_instead_of_forwarding(
    proxy: Proxy, s3: Any, direct_s3: Any
) -> None:
    proxy.faults.append(Fault("PutObject", Respond(503, "SlowDown")))
    with pytest.raises(ClientError, match="SlowDown") as error:
        s3.put_object(Bucket="bucket", Key="respond", Body=OBJECT)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert "respond" not in object_keys(direct_s3)
    assert proxy.requests[0].received == len(OBJECT)
    assert proxy.requests[0].completed


def test_request_is_reset_after_so_many_bytes(proxy: Proxy, direct_s3: Any) -> None:
    proxy.faults.append(Fault("PutObject", ResetRequest(after_bytes=1_000)))
    with connect_to(proxy.url) as connection:
        connection.sendall(PUT % 2_000 + bytes(1_000))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert proxy.requests[0].received == 1_000
    assert proxy.requests[0].status is None
    assert "put" not in object_keys(direct_s3)


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000, len(OBJECT), len(OBJECT) + 1])
def test_response_is_reset_after_so_many_bytes(proxy: Proxy, after_bytes: int) -> None:
    proxy.faults.append(Fault("GetObject", Reset(after_bytes)))
    with connect_to(proxy.url) as connection:
        connection.sendall(GET)
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionResetError):
            read_until_closed(connection)
    assert proxy.requests[0].sent == min(after_bytes, len(OBJECT))
    assert not proxy.requests[0].completed


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000, len(OBJECT), len(OBJECT) + 1])
def test_response_is_truncated_after_so_many_bytes(proxy: Proxy, after_bytes: int) -> None:
    proxy.faults.append(Fault("GetObject", Truncate(after_bytes)))
    with connect_to(proxy.url) as connection:
        connection.sendall(GET)
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        assert read_until_closed(connection) == OBJECT[:after_bytes]
    assert not proxy.requests[0].completed


def test_response_without_a_body_can_be_reset(proxy: Proxy) -> None:
    proxy.faults.append(Fault("HeadObject", Reset()))
    with connect_to(proxy.url) as connection:
        connection.sendall(GET.replace(b"GET", b"HEAD"))
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


@pytest.mark.parametrize("after_bytes", [0, 100_000])
def test_stall_delays_the_rest_of_the_response(proxy: Proxy, after_bytes: int) -> None:
    proxy.faults.append(Fault("GetObject", Stall(0.1, after_bytes)))
    started = time.monotonic()
    assert httpx.get(f"{proxy.url}/bucket/object").content == OBJECT
    assert time.monotonic() - started > 0.1
    assert proxy.requests[0].completed


def test_stall_ends_when_the_proxy_closes(moto: Store, direct_s3: Any) -> None:
    with Proxy(moto.endpoint_url) as proxy:
        proxy.faults.append(Fault("GetObject", Stall(FOREVER, 1_000)))
        connection = connect_to(proxy.url)
        connection.sendall(GET)
        read_head(connection)
        assert read_exactly(connection, 1_000) == OBJECT[:1_000]
        assert proxy.requests[0].sent == 1_000
        assert not proxy.requests[0].completed
    with connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_stall_ends_when_the_client_closes(proxy: Proxy) -> None:
    proxy.faults.append(Fault("GetObject", Stall(FOREVER)))
    with connect_to(proxy.url) as connection:
        connection.sendall(GET)
        read_head(connection)
    wait_until(lambda: proxy.open_connections == 0)


def test_drip_limits_the_rate_of_the_response(proxy: Proxy) -> None:
    proxy.faults.append(Fault("GetObject", Throttle(bytes_per_second=10 * len(OBJECT))))
    started = time.monotonic()
    assert httpx.get(f"{proxy.url}/bucket/object").content == OBJECT
    assert time.monotonic() - started > 0.1


def test_delay_forwards_the_request_later(proxy: Proxy, direct_s3: Any) -> None:
    proxy.faults += [
        Fault("PutObject", Delay(0.1)),
        Fault("PutObject", Delay(FOREVER), after=1),
    ]
    started = time.monotonic()
    httpx.put(f"{proxy.url}/bucket/delayed", content=OBJECT).raise_for_status()
    assert time.monotonic() - started > 0.1
    with connect_to(proxy.url) as connection:
        connection.sendall(PUT % 10 + bytes(10))
        wait_until(lambda: proxy.open_connections == 1)
    wait_until(lambda: proxy.open_connections == 0)
    assert "put" not in object_keys(direct_s3)


def test_hold_forwards_the_request_when_it_is_released(proxy: Proxy, direct_s3: Any) -> None:
    hold, forever = Hold(), Hold()
    proxy.faults += [Fault("PutObject", hold), Fault("PutObject", forever, after=1)]
    with connect_to(proxy.url) as connection:
        connection.sendall(PUT % 10 + bytes(10))
        wait_until(lambda: len(proxy.requests) == 1)
        assert "put" not in object_keys(direct_s3)
        hold.release.set()
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        assert "put" in object_keys(direct_s3)
    with connect_to(proxy.url) as connection:
        connection.sendall(PUT % 10 + bytes(10))
        wait_until(lambda: proxy.open_connections == 1)
    wait_until(lambda: proxy.open_connections == 0)


def test_swallow_drops_the_response(proxy: Proxy, s3: Any, direct_s3: Any) -> None:
    proxy.faults.append(Fault("PutObject", DropResponse()))
    with pytest.raises(ConnectionClosedError):
        s3.put_object(Bucket="bucket", Key="swallowed", Body=OBJECT)
    assert "swallowed" in object_keys(direct_s3)
    assert proxy.requests[0].status is None
    assert not proxy.requests[0].completed


def test_unplugged_proxy_resets_and_refuses_connections(proxy: Proxy) -> None:
    proxy.faults.append(Fault("GetObject", Stall(FOREVER)))
    url = proxy.url
    with connect_to(url) as stalled, connect_to(url) as idle:
        stalled.sendall(GET)
        read_head(stalled)
        wait_until(lambda: proxy.open_connections == 2)
        proxy.disable()
        assert proxy.open_connections == 0
        for connection in (stalled, idle):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connect_to(url)
    proxy.enable()
    assert proxy.url == url
    assert httpx.get(f"{url}/bucket/object").content == OBJECT


def test_unreachable_store_resets_the_connection(proxy: Proxy) -> None:
    with Proxy(proxy.url) as outer, connect_to(outer.url) as connection:
        proxy.disable()
        connection.sendall(GET)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_closed_proxy_leaves_no_thread_and_no_socket(moto: Store) -> None:
    for _ in range(20):
        with Proxy(moto.endpoint_url) as proxy:
            url = proxy.url
            connection = connect_to(url)
        connection.close()
        with pytest.raises(ConnectionRefusedError):
            connect_to(url)
        assert "proxy" not in {thread.name for thread in threading.enumerate()}
