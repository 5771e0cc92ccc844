"""Servers of a test's own, to be stopped, killed and filled as it likes; and proxies to others'."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
#: Debian's own wrapper, which is found first, runs one node a machine.
RABBITMQ = ("/usr/lib/rabbitmq/bin", *os.environ.get("PATH", "").split(os.pathsep))


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

    def fill(self) -> None:
        self.client().config_set("maxmemory", "1")

    def empty(self) -> None:
        self.client().config_set("maxmemory", "0")

    def kill(self) -> None:
        self.thaw()
        self._popen.kill()
        self._popen.wait(10)

    def freeze(self) -> None:
        os.kill(self._popen.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self._popen.poll() is None:
            os.kill(self._popen.pid, signal.SIGCONT)


class RabbitMQ:
    """A node of its own, of a name and with a cookie that no other has; `rabbit` is its settings.

    `RabbitMQ(directory, consumer_timeout=1_000)`: times are milliseconds.
    """

    def __init__(self, directory: Path, **rabbit: int) -> None:
        path = os.pathsep.join(RABBITMQ)
        binary = shutil.which("rabbitmq-server", path=path)
        control = shutil.which("rabbitmqctl", path=path)
        if binary is None or control is None:
            pytest.skip("rabbitmq-server is not installed")
        self.control = control
        self.port = free_port()
        self.log = directory / "rabbitmq.log"
        self.node = f"autorun{self.port}@localhost"
        settings = [f"{name} {value}" for name, value in rabbit.items()]
        self.environment = os.environ | {
            "HOME": str(directory),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(directory / "rabbitmq"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                ["-rabbit", *settings, "-kernel inet_dist_use_interface {127,0,0,1}"]
            ),
        }
        with self.log.open("wb") as output:
            self._popen = subprocess.Popen(
                [binary],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 90
        while b"Server startup complete" not in self.log.read_bytes():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                text = self.log.read_text(errors="replace")
                self.kill()
                pytest.fail(f"RabbitMQ does not start:\n{text[-3000:]}")
            time.sleep(0.1)

    def fill(self) -> None:
        """The memory alarm is on: publishers are blocked."""
        self._control("set_vm_memory_high_watermark", "0")

    def empty(self) -> None:
        self._control("set_vm_memory_high_watermark", "0.4")

    def _control(self, *command: str) -> None:
        arguments = [self.control, "-q", "-n", self.node, *command]
        subprocess.run(arguments, env=self.environment, check=True, timeout=60)

    def freeze(self) -> None:
        os.killpg(self._popen.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self._popen.pid, signal.SIGCONT)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(10)


OWN: dict[str, type[Redis] | type[RabbitMQ]] = {"redis": Redis, "rabbitmq": RabbitMQ}


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
