"""Time limits of a connection's socket, for a server whose machine vanishes without a word.

PostgreSQL's driver has options for them, which a system check asks for. PyMySQL has none: it would
wait for an answer as long as the kernel does, for a quarter of an hour or for ever.
"""

import socket
from contextlib import suppress
from typing import Any

from django.db.backends.signals import connection_created

#: Seconds after which a silent server is asked, then between two questions, then until it is lost.
_SECONDS = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_LOST_AFTER = {"TCP_USER_TIMEOUT": 25_000}  # milliseconds


def connect() -> None:
    connection_created.connect(_limit, dispatch_uid="autorun.state.sockets")


def _limit(connection: Any, **_: Any) -> None:
    opened = getattr(connection.connection, "_sock", None)  # PyMySQL's
    if opened is None or opened.family not in (socket.AF_INET, socket.AF_INET6):
        return
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (_SECONDS | _LOST_AFTER).items():
        # Some systems lack some of them.
        with suppress(AttributeError, OSError):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
