"""Reads what drivers know of a session without a statement, and asks SQLite for the rest."""

import gc
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from operator import attrgetter, is_, methodcaller
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

#: Settings of a session whose changes PostgreSQL reports to the driver.
_REPORTED = (b"default_transaction_read_only", b"session_authorization", b"is_superuser")
_IDLE = 0  # libpq's state of a transaction
_IN_TRANSACTION, _AUTOCOMMIT = 1, 2  # bits of MariaDB's server status
#: A collation that nothing uses; SQLite refuses to replace it while a cursor has rows left.
_COLLATION = "autorun"
#: Steps of an SQLite query, some hundredths of a second, after which Python can handle signals.
_STEPS = 1_000_000
#: What Django's connection consists of. It changes its other attributes itself.
_PARTS = frozenset(
    [
        *("alias", "client", "creation", "features", "introspection", "ops", "validation"),
        *("settings_dict", "timezone", "timezone_name", "force_debug_cursor"),
        *("_thread_ident", "_thread_sharing_count"),
    ]
)
#: Lets signals end a query of an SQLite connection: 0 continues, but an exception that a signal
#: handler raises here ends it.
be_interruptible = methodcaller("set_progress_handler", lambda: 0, _STEPS)
_NONE = object()
#: psycopg's maps from types to what adapts them. A map copies those that it changes.
_ADAPTERS = ("_dumpers", "_dumpers_by_oid", "_loaders")
_OF_PYMYSQL = (
    *("cursorclass", "charset", "encoding", "use_unicode", "decoders", "encoders"),
    *("max_allowed_packet", "_read_timeout", "_write_timeout", "cursor", "query"),
)


def prepare(raw: Any) -> None:
    """Prepare a new connection for `has_rows_left()`, and for comparing its session."""
    if hasattr(raw, "create_collation"):
        with suppress(sqlite3.Error):  # it is closed already
            raw.create_collation(_COLLATION, is_)
    if (adapters := getattr(raw, "adapters", None)) is not None:
        type(adapters)(adapters)  # from now on the connection's map copies what it changes


def put_back_attributes(
    connection: BaseDatabaseWrapper, before: Sequence[dict[str, Any]]
) -> list[str]:
    """Put back methods and parts that were replaced since `before`, and return their names.

    `before` has the attributes of Django's connection, of its operations and of its features, with
    what the project had patched by then.
    """
    of, operations, features = before
    names = _put_back(connection, of)
    names += _put_back(connection.ops, operations)
    return names + _put_back(connection.features, features, kinds=(bool,))


def _put_back(of: Any, before: dict[str, Any], *, kinds: tuple[type, ...] = ()) -> list[str]:
    now, names = vars(of), []
    for name in {**before, **now}:
        if name == "connection" or now.get(name, _NONE) is before.get(name, _NONE):
            continue
        was = before.get(name, getattr(type(of), name, None))
        if callable(was) or isinstance(was, kinds) or (name in _PARTS and name in before):
            names.append(name)
            if name in before:
                now[name] = was
            else:
                del now[name]
    return names


def has_rows_left(raw: Any) -> bool:
    """Whether a cursor has: it keeps its snapshot, or makes other processes wait with writing."""
    try:
        raw.create_collation(_COLLATION, is_)
    except sqlite3.Error:
        return True
    return False


def has_temporary(raw: Any) -> bool | None:
    """Whether there is a temporary table or the like: it may hide a table of autorun's.

    None as long as the connection has never had any, which takes no statement.
    """
    try:
        raw.serialize(name="temp")
        return bool(raw.execute("SELECT 1 FROM sqlite_temp_master").fetchall())
    except (sqlite3.Error, AttributeError):  # none, or SQLite cannot tell
        return None


def end_cursors(raw: Any) -> None:
    """End the cursors of a connection: they would outlive it, and keep its lock."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as nowhere:
        for each in gc.get_referrers(raw):
            if isinstance(each, sqlite3.Cursor):
                sqlite3.Cursor.__init__(each, nowhere)


def _session_on_postgresql(raw: Any) -> object:
    pgconn = getattr(raw, "pgconn", None)
    if pgconn is None:  # psycopg2
        is_idle = raw.autocommit and raw.info.transaction_status == _IDLE and not raw.closed
        return [raw.cursor_factory] if is_idle else None
    if not raw.autocommit or pgconn.transaction_status != _IDLE:
        return None
    own = vars(raw)
    return [
        *(raw.row_factory, raw.cursor_factory, raw.server_cursor_factory, raw.prepare_threshold),
        *(raw.isolation_level, raw.read_only, raw.deferrable),
        *map(pgconn.parameter_status, _REPORTED),
        *map(vars(raw.adapters).get, _ADAPTERS),
        *(own.get("cursor"), own.get("wait"), len(own)),
    ]


def _session_on_mariadb(raw: Any) -> object:
    status = getattr(raw, "server_status", None)
    if status is None:  # mysqlclient: only statements would tell more
        return [True] if raw.get_autocommit() else None
    is_idle = raw.open and status & (_IN_TRANSACTION | _AUTOCOMMIT) == _AUTOCOMMIT
    # It is another session if user code has connected it anew.
    own = vars(raw)
    return [*map(own.get, _OF_PYMYSQL), raw.thread_id(), len(own)] if is_idle else None


#: What the driver reports of a session, and of what its cursors return; None if it is not idle.
SESSIONS: dict[str, Callable[[Any], Any]] = {
    "sqlite": attrgetter("in_transaction", "row_factory", "text_factory", "isolation_level"),
    "postgresql": _session_on_postgresql,
    "mysql": _session_on_mariadb,
}
