"""Servers of a test's own, to be stopped, killed and filled as it likes; and proxies to others'."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest
import redis

from settings import brokers, celery_app
from tests import services
from tests.conftest import _connect
from tests.faults.driver import Lab
from tests.faults.hosts import Host
from tests.faults.proxy import Proxy

PORTS = {"rabbitmq": 5672, "redis": 6379}
URLS = {
    "rabbitmq": "amqp://guest:guest@{host}:{port}//",
    "redis": "redis://{host}:{port}/0",
}
#: Debian's own wrapper, which is found first, runs one node a machine.
RABBITMQ = "/usr/lib/rabbitmq/bin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server that lives as long as a `with` block."""

    port: int
    log: Path
    _popen: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._popen.wait(10)

    def _begin(
        self,
        *command: str,
        environment: dict[str, str] | None = None,
        account: str | None = None,
    ) -> None:
        with self.log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                env=environment,
                user=account,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until(self, is_ready: Callable[[], bool], *, seconds: float) -> None:
        """Where it does not get ready, fail with its log, and leave nothing behind."""
        deadline = time.monotonic() + seconds
        while not is_ready():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                self.kill()
                text = self.log.read_text(errors="replace")
                pytest.fail(f"{type(self).__name__} does not start:\n{text[-3000:]}")
            time.sleep(0.05)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)


class Broker(Server):
    """A broker in processes of one group."""

    def lose_everything(self) -> None:
        """Let it die at once, and come back with nothing it was told."""
        raise NotImplementedError

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)


class Redis(Broker):
    """A redis-server that keeps nothing on disk."""

    def __init__(
        self, directory: Path, *, port: int | None = None, host: Host | None = None
    ) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.log = directory / "redis.log"
        self.within = host.within if host else ()
        self.address = host.address if host else "127.0.0.1"

    def start(self) -> None:
        self._begin(
            *(*self.within, _binary("redis-server"), "--port", str(self.port)),
            *("--bind", self.address, "--protected-mode", "no"),
            *("--save", "", "--appendonly", "no", "--dir", str(self.directory)),
        )
        self._wait_until(self._answers, seconds=30)

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.RedisError:
            return False

    def lose_everything(self) -> None:
        self.kill()
        self.start()

    def client(self) -> redis.Redis:
        return redis.Redis(
            host=self.address, port=self.port, socket_timeout=2, socket_connect_timeout=2
        )

    def fill(self) -> None:
        self.client().config_set("maxmemory", "1")

    def empty(self) -> None:
        self.client().config_set("maxmemory", "0")


class RabbitMQ(Broker):
    """A node of its own, of a name and with a cookie that no other has; `rabbit` is its settings.

    `RabbitMQ(directory, consumer_timeout=1_000)`: times are milliseconds.
    """

    def __init__(self, directory: Path, **rabbit: int) -> None:
        self.port = free_port()
        self.log = directory / "rabbitmq.log"
        self.data = directory / "rabbitmq"
        self.node = f"autorun{self.port}@localhost"
        settings = [f"{name} {value}" for name, value in rabbit.items()]
        self.environment = os.environ | {
            "HOME": str(directory),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.data),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                ["-rabbit", *settings, "-kernel inet_dist_use_interface {127,0,0,1}"]
            ),
        }

    def start(self) -> None:
        self._begin(_binary("rabbitmq-server"), environment=self.environment)
        self._wait_until(lambda: b"startup complete" in self.log.read_bytes(), seconds=180)

    def lose_everything(self) -> None:
        self.kill()
        shutil.rmtree(self.data)
        self.start()

    def fill(self) -> None:
        """The memory alarm is on: publishers are blocked."""
        self._control("set_vm_memory_high_watermark", "0")

    def empty(self) -> None:
        self._control("set_vm_memory_high_watermark", "0.4")

    def _control(self, *command: str) -> None:
        arguments = [_binary("rabbitmqctl"), "-q", "-n", self.node, *command]
        subprocess.run(arguments, env=self.environment, check=True, timeout=60)


class PostgreSQL(Server):
    """A cluster of its own, of the superuser `postgres`, who needs no password."""

    def __init__(self, host: Host | None = None) -> None:
        self.port = free_port()
        self.host = host
        self.address = host.address if host else "127.0.0.1"
        # Not in pytest's own directory, which another account may not enter.
        self._temporary = tempfile.TemporaryDirectory(prefix="autorun-postgres-")
        self.directory = Path(self._temporary.name) / "data"
        self.log = Path(self._temporary.name) / "log"
        #: The server refuses to run as root.
        self.account = "postgres" if os.getuid() == 0 else None
        self.directory.mkdir()
        if self.account:
            shutil.chown(self._temporary.name, self.account)
            shutil.chown(self.directory, self.account)
        self._fill()

    def _fill(self) -> None:
        options = ("--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8")
        self._run("initdb", "--pgdata", str(self.directory), *options)
        with (self.directory / "pg_hba.conf").open("a") as access:
            access.write("host all all 10.231.0.0/16 trust\n")

    def start(self) -> None:
        within: tuple[str, ...] = ()
        if self.host:
            # Only root enters a namespace.
            become = ("--reuid", "postgres", "--regid", "postgres", "--init-groups")
            within = (*self.host.within, "setpriv", *become)
        self._begin(
            *(*within, _binary("postgres"), "-D", str(self.directory), "-p", str(self.port)),
            *("-c", f"listen_addresses={self.address}", "-k", str(self.directory)),
            account=None if within else self.account,
        )
        ask = ("pg_isready", "--port", str(self.port), "--host", self.address)
        self._wait_until(lambda: self._ask(*ask) == 0, seconds=30)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._temporary.cleanup()

    def kill(self) -> None:
        # Its children are in sessions of their own; told so, it ends them and saves nothing.
        self._signal(signal.SIGQUIT)
        self._popen.wait(30)

    def restart(self) -> None:
        """Let it die at once, and recover what had been committed."""
        self.kill()
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        assert self._ask(program, *arguments) == 0, program

    def _ask(self, program: str, *arguments: str) -> int:
        return subprocess.run(
            [_binary(program), *arguments],
            user=self.account,
            check=False,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
        ).returncode


class Replica(PostgreSQL):
    """An asynchronous replica of a server that runs."""

    def __init__(self, primary: PostgreSQL) -> None:
        self._primary = primary
        super().__init__()

    def _fill(self) -> None:
        self.directory.chmod(0o700)
        source = ("--host", "127.0.0.1", "--port", str(self._primary.port), "-U", "postgres")
        options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        self._run("pg_basebackup", "--pgdata", str(self.directory), *source, *options)

    def fall_behind(self) -> None:
        """Follow the primary no more: its next commits are lost."""
        self._execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")

    def promote(self) -> None:
        self._execute("SELECT pg_promote()")

    def _execute(self, *statements: str) -> None:
        where = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


def _binary(name: str) -> str:
    """Where a server's program is; a machine that has none skips the test."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([RABBITMQ, *map(str, versions), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


OWN: dict[str, type[Redis | RabbitMQ]] = {"redis": Redis, "rabbitmq": RabbitMQ}


@contextmanager
def proxied_broker(lab: Lab) -> Iterator[Proxy]:
    """A proxy in front of the lab's broker, for this process and those the lab starts."""
    with Proxy(PORTS[lab.broker]) as proxy, broker_at(lab, proxy.port):
        yield proxy


@contextmanager
def broker_at(lab: Lab, port: int, *, host: str = "127.0.0.1") -> Iterator[None]:
    """The lab's broker is at another port, of this machine or of a host."""
    url = URLS[lab.broker].format(host=host, port=port)
    name = f"AUTORUN_{lab.broker.upper()}_URL"
    lab.environment[name] = url
    before = brokers.Broker(celery_app.conf.broker_url, celery_app.conf.broker_transport_options)
    _connect(celery_app, brokers.Broker(url, services.BROKERS[lab.broker]().options))
    try:
        yield
    finally:
        lab.stop()
        _connect(celery_app, before)
