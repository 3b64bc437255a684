"""Upload tokens are changed in two replicas, one after the other, while clients upload."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.http.auth.authorizer import hash_token
from tests.support.key_leaks import LEAK_DETECTOR
from tests.support.polling import wait_until
from tests.support.services.replicas import Replica
from tests.support.stores import Store, free_ports
from tests.support.stores.access import aws_environment
from tests.support.stores.buckets import new_bucket

OLD, NEW = (LEAK_DETECTOR.add_key(f"the-{age}-upload-token") for age in ("old", "new"))


class Clients:
    """Four clients that upload all the time, each to one replica after the other."""

    def __init__(self, urls: list[str], token: str) -> None:
        self.token = token
        self.statuses = Counter[int]()
        self._urls = urls
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._upload, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)

    def wait_for_uploads(self, count: int = 40) -> None:
        target = self.statuses[200] + count
        wait_until(lambda: self.statuses[200] >= target, timeout=30)

    def _upload(self, number: int) -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            while not self._stop.is_set():
                number += 1
                headers = {"Authorization": f"Bearer {self.token}"}
                try:
                    url = f"{self._urls[number % 2]}/upload"
                    self.statuses[
                        http.post(url, content=b"bundle", headers=headers).status_code
                    ] += 1
                except httpx.TransportError:
                    self.statuses[0] += 1  # The replica is being restarted.


def test_no_valid_token_is_refused_while_tokens_are_changed(
    store: Store, s3: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with aws_environment(store) as variables, log.open("wb") as output:
        environment = {**variables, "HISTORY_BUCKET": new_bucket(s3), "HISTORY_DRAIN_DELAY": "0s"}
        ports = free_ports(2)

        def start(port: int, *tokens: str) -> Replica:
            pairs = ",".join(f"app:{hash_token(token)}" for token in tokens)
            setting = {"HISTORY_UPLOAD_TOKENS": pairs}
            replica = Replica("a replica", port, {**environment, **setting}, output)
            replica.start()
            replica.wait_until_ready()
            return replica

        replicas = [start(port, OLD) for port in ports]
        clients = Clients([replica.url for replica in replicas], OLD)

        def restart_all(*tokens: str) -> None:
            for number, port in enumerate(ports):
                replicas[number].send_signal(signal.SIGTERM)
                assert replicas[number].wait() == 0
                replicas[number] = start(port, *tokens)
                clients.wait_for_uploads()

        try:
            with clients.running():
                clients.wait_for_uploads()
                restart_all(OLD, NEW)
                clients.token = NEW
                clients.wait_for_uploads()
                restart_all(NEW)
                assert clients.statuses[401] == 0
                clients.token = OLD
                wait_until(lambda: clients.statuses[401] > 0)
        finally:
            for replica in replicas:
                replica.kill()
    assert set(clients.statuses) <= {200, 401, 503, 0}
    lines = log.read_text()
    assert '"caller": "app"' in lines
    assert OLD not in lines
    assert NEW not in lines
