"""One function per broker, which returns its URL and Celery's transport options.

The options limit every wait. Otherwise a broker that accepts a connection and then freezes would
block a publisher for ever.
"""

import os
from typing import Any, NamedTuple

from settings.environment import var_directory


class Broker(NamedTuple):
    """Values of `CELERY_BROKER_URL` and `CELERY_BROKER_TRANSPORT_OPTIONS`."""

    url: str
    options: dict[str, Any]


def embedded() -> Broker:
    """A SQLite file, to try autorun without a server."""
    return Broker(f"sqlite:///{var_directory() / 'broker.sqlite3'}", {})


def rabbitmq() -> Broker:
    """RabbitMQ, with every message confirmed."""
    return Broker(
        os.environ.get("AUTORUN_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//"),
        # Without confirmation, a server in memory alarm accepts messages and stores none.
        {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5},
    )


def redis() -> Broker:
    """Redis; messages of a lost worker come back after `visibility_timeout` seconds."""
    return Broker(
        os.environ.get("AUTORUN_REDIS_URL", "redis://127.0.0.1:6379/0"),
        {
            "socket_timeout": 2,
            "socket_connect_timeout": 2,
            "visibility_timeout": 3600,
            "unacked_restore_interval": 1,
        },
    )
