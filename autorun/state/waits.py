"""Waits for locks, bounded in every statement that changes autorun's tables.

A frozen process, a lost machine, or a view that works on in its transaction may hold a lock for
hours. The limit is part of the statement: it takes no statement of its own, and the session stays
as the project has set it. SQLite has its own limit, the connection's `timeout`.
"""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

#: Seconds that a statement waits for a lock. MariaDB takes whole ones.
LONGEST_WAIT = 2
#: Seconds without a statement after which the server ends a transaction whose lock many need.
LONGEST_IDLENESS = 2
#: The key by which the context of a statement says that its limit is autorun's.
IS_BOUNDED = "autorun_is_bounded"

#: The attribute of a connection with the statement to be sent before the next one that locks.
_WITH_LOCK = "_autorun_with_lock"

#: The beginning of a compound statement of MariaDB.
_COMPOUND = "BEGIN NOT ATOMIC "
_TAKES_LOCKS = re.compile(r"\s*(INSERT|UPDATE|DELETE|(WITH|SELECT)\b.*\bUPDATE)\b", re.DOTALL)


#: Seconds after which a silent server is asked, then between two questions, then until it is lost.
_SECONDS = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_LOST_AFTER = {"TCP_USER_TIMEOUT": 25_000}  # milliseconds


def connect() -> None:
    connection_created.connect(bound_statements, dispatch_uid="autorun.state.waits")
    connection_created.connect(_limit_socket, dispatch_uid="autorun.state.waits.sockets")


def _limit_socket(connection: Any, **_: Any) -> None:
    """Notice that a server's machine has vanished, with a driver that has no options for it."""
    # PyMySQL would wait for an answer as long as the kernel does: a quarter of an hour, or forever.
    opened = getattr(connection.connection, "_sock", None)
    if opened is None or opened.family not in (socket.AF_INET, socket.AF_INET6):
        return
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (_SECONDS | _LOST_AFTER).items():
        with suppress(AttributeError, OSError):  # some systems lack some of them
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextmanager
def bounded_idleness(
    connection: BaseDatabaseWrapper, seconds: int = LONGEST_IDLENESS, *, from_lock: bool = False
) -> Iterator[None]:
    """Have the server end this transaction if its process is frozen; entered in the transaction.

    `from_lock` saves a statement if the server can be told by the first one that takes a lock.
    """
    is_mariadb = connection.vendor == "mysql"
    limit = f"SET LOCAL idle_in_transaction_session_timeout = '{seconds:d}s'; "
    if is_mariadb:
        limit = (
            "SET @autorun_idleness = @@SESSION.idle_transaction_timeout, "
            f"SESSION idle_transaction_timeout = {seconds:d}; "
        )
    if from_lock and (is_mariadb or takes_several(connection)):
        vars(connection)[_WITH_LOCK] = vars(connection).get(_WITH_LOCK, "") + limit
    elif is_mariadb or connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(limit)
    try:
        yield
    finally:
        is_unsent = vars(connection).pop(_WITH_LOCK, None) is not None
        if is_mariadb and not is_unsent and connection.connection is not None:
            # Not through Django, which sends nothing in a transaction that will be rolled back.
            with connection.wrap_database_errors, connection.connection.cursor() as cursor:
                cursor.execute("SET SESSION idle_transaction_timeout = @autorun_idleness")


@contextmanager
def sent_with_lock(connection: BaseDatabaseWrapper, setting: str) -> Iterator[None]:
    """Send `setting` in front of the block's first statement that takes a lock, if one can be."""
    if takes_several(connection):
        vars(connection)[_WITH_LOCK] = setting
    try:
        yield
    finally:
        vars(connection).pop(_WITH_LOCK, None)


@contextmanager
def bounded_waits(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Bound the waits of statements on a project's tables, in a transaction of autorun's."""
    names = ("innodb_lock_wait_timeout", "lock_wait_timeout")
    is_mariadb = connection.vendor == "mysql"
    with connection.cursor() as cursor:
        if is_mariadb:
            kept = ", ".join(f"@autorun_{name} = @@SESSION.{name}" for name in names)
            bounds = ", ".join(f"SESSION {name} = {LONGEST_WAIT}" for name in names)
            cursor.execute(f"SET {kept}, {bounds}")
        elif connection.vendor == "postgresql":
            cursor.execute(f"SET LOCAL lock_timeout = '{LONGEST_WAIT}s'")
    try:
        yield
    finally:
        if is_mariadb and connection.connection is not None:
            before = ", ".join(f"SESSION {name} = @autorun_{name}" for name in names)
            with connection.wrap_database_errors, connection.connection.cursor() as cursor:
                cursor.execute(f"SET {before}")


def bound_statements(connection: BaseDatabaseWrapper, **_: Any) -> None:
    wrapper = _WRAPPERS.get(connection.vendor)
    if wrapper is not None and wrapper not in connection.execute_wrappers:
        # Before those that are there for a time, and are then removed from the end.
        connection.execute_wrappers.insert(0, wrapper)


def _takes_locks(sql: object, *, many: bool) -> bool:
    """Whether a statement may wait for a lock on autorun's tables."""
    is_ours = not many and isinstance(sql, str) and "autorun_" in sql
    return is_ours and _TAKES_LOCKS.match(str(sql)) is not None


def _on_postgresql(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
) -> Any:
    connection = context["connection"]
    if not takes_several(connection) or not _takes_locks(sql, many=many):
        return execute(sql, params, many, context)
    idleness = vars(connection).pop(_WITH_LOCK, "")
    limits = f"{idleness}SET LOCAL lock_timeout = '{LONGEST_WAIT}s'"
    several = f"{limits}; {sql}; SET LOCAL lock_timeout TO DEFAULT"
    result = execute(several, params, many, {**context, IS_BOUNDED: True})
    for _ in limits.split(";"):
        context["cursor"].cursor.nextset()  # to the result of the statement itself
    return result


def takes_several(connection: Any) -> bool:
    """Whether several statements can be sent at once, as nothing binds parameters on the server."""
    is_psycopg = hasattr(connection.connection, "pgconn")
    return is_psycopg and not connection.features.uses_server_side_binding


def _on_mariadb(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
) -> Any:
    connection = context["connection"]
    is_compound = isinstance(sql, str) and sql.startswith(_COMPOUND) and "autorun_" in sql
    if not connection.mysql_is_mariadb or not (is_compound or _takes_locks(sql, many=many)):
        return execute(sql, params, many, context)
    context = {**context, IS_BOUNDED: True}
    idleness = vars(connection).pop(_WITH_LOCK, "")
    if is_compound:
        sql = sql.replace(_COMPOUND, f"{_COMPOUND}{idleness}", 1)
    elif idleness:
        execute(idleness, None, False, context)
    return execute(sql if is_compound else bounded(sql), params, many, context)


def in_order(*parts: str) -> str:
    """A compound statement of MariaDB, whose parts the server executes one after the other."""
    return f"{_COMPOUND}{'; '.join(parts)}; END"


def bounded(sql: str) -> str:
    """A statement of MariaDB that takes locks, and waits for them a limited time."""
    limits = f"innodb_lock_wait_timeout = {LONGEST_WAIT}, lock_wait_timeout = {LONGEST_WAIT}"
    return f"SET STATEMENT {limits} FOR {sql}"


_WRAPPERS = {"postgresql": _on_postgresql, "mysql": _on_mariadb}
