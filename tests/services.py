"""Which databases and brokers answer on this machine."""

import os
from collections.abc import Callable
from contextlib import closing
from functools import cache

import kombu

from settings import brokers, databases
from settings.brokers import Broker

DATABASES = ("sqlite", "postgres", "mariadb")
BROKERS: dict[str, Callable[[], Broker]] = {
    "embedded": brokers.embedded,
    "rabbitmq": brokers.rabbitmq,
    "redis": brokers.redis,
}


def are_required() -> bool:
    """Whether a service that does not answer is a failure rather than a skip."""
    return os.environ.get("AUTORUN_REQUIRE_SERVICES") == "1"


@cache
def silence(name: str) -> str | None:
    """Why the database or broker cannot be used; None when it answers within two seconds."""
    try:
        if name in BROKERS:
            _knock_at_broker(BROKERS[name]())
        else:
            _knock_at_database(name)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


def _knock_at_broker(broker: Broker) -> None:
    options = broker.options
    with kombu.Connection(broker.url, transport_options=options, connect_timeout=2) as connection:
        connection.connect()
        # Redis connects when it has something to say.
        connection.default_channel.queue_declare(
            "autorun-knock", durable=False, auto_delete=True, arguments={"x-expires": 1000}
        )
        connection.default_channel.queue_delete("autorun-knock")


def _knock_at_database(name: str) -> None:
    if name == "postgres":
        import psycopg

        where = databases.postgres()
        with psycopg.connect(
            host=where["HOST"],
            port=where["PORT"],
            user=where["USER"],
            password=where["PASSWORD"],
            dbname="postgres",
            connect_timeout=2,
        ):
            pass
    elif name == "mariadb":
        import pymysql

        where = databases.mariadb()
        with closing(
            pymysql.connect(
                host=where["HOST"],
                port=int(where["PORT"]),
                user=where["USER"],
                password=where["PASSWORD"],
                connect_timeout=2,
            )
        ):
            pass
