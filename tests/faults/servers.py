"""Servers of a test's own, to be stopped, killed and filled as it likes; and proxies to others'."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis

from settings import celery_app
from settings.brokers import Broker
from tests import services
from tests.conftest import _connect
from tests.faults.driver import Lab
from tests.faults.proxy import Proxy

PORTS = {"rabbitmq": 5672, "redis": 6379}
URLS = {
    "rabbitmq": "amqp://guest:guest@127.0.0.1:{port}//",
    "redis": "redis://127.0.0.1:{port}/0",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Redis:
    """A redis-server that keeps nothing on disk."""

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("redis-server is not installed")
        self.binary = binary
        self.directory = directory
        self.port = port or free_port()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self, *arguments: str) -> None:
        self._popen = subprocess.Popen(
            [
                *(self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--appendonly", "no", "--dir", str(self.directory), *arguments),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.client().ping()
            except redis.RedisError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=2, socket_connect_timeout=2)

    def kill(self) -> None:
        self.thaw()
        self._popen.kill()
        self._popen.wait(10)

    def freeze(self) -> None:
        os.kill(self._popen.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self._popen.poll() is None:
            os.kill(self._popen.pid, signal.SIGCONT)


@contextmanager
def proxied_broker(lab: Lab) -> Iterator[Proxy]:
    """A proxy in front of the lab's broker, for this process and those the lab starts."""
    with Proxy(PORTS[lab.broker]) as proxy, broker_at(lab, proxy.port):
        yield proxy


@contextmanager
def broker_at(lab: Lab, port: int) -> Iterator[None]:
    """The lab's broker is at another port of this machine."""
    url = URLS[lab.broker].format(port=port)
    name = f"AUTORUN_{lab.broker.upper()}_URL"
    lab.environment[name] = url
    before = Broker(celery_app.conf.broker_url, celery_app.conf.broker_transport_options)
    _connect(celery_app, Broker(url, services.BROKERS[lab.broker]().options))
    try:
        yield
    finally:
        lab.stop()
        _connect(celery_app, before)
