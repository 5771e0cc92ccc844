"""Reads what drivers know of a session without a statement, and asks SQLite for the rest."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from operator import attrgetter, is_
from typing import Any

#: Settings of a session whose changes PostgreSQL reports to the driver.
_REPORTED = (b"default_transaction_read_only", b"session_authorization", b"is_superuser")
_IDLE = 0  # libpq's state of a transaction
_IN_TRANSACTION, _AUTOCOMMIT = 1, 2  # bits of MariaDB's server status
#: A collation that nothing uses; SQLite refuses to replace it while a cursor has rows left.
_COLLATION = "autorun"


def prepare(raw: Any) -> None:
    """Prepare a new connection for `has_rows_left()`."""
    with suppress(sqlite3.Error):  # it is closed already
        raw.create_collation(_COLLATION, is_)


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
    of_driver = (raw.row_factory, raw.cursor_factory, raw.isolation_level, raw.read_only)
    return [*of_driver, *map(pgconn.parameter_status, _REPORTED)]


def _session_on_mariadb(raw: Any) -> object:
    status = getattr(raw, "server_status", None)
    if status is None:  # mysqlclient: only statements would tell more
        return raw.get_autocommit() or None
    is_idle = raw.open and status & (_IN_TRANSACTION | _AUTOCOMMIT) == _AUTOCOMMIT
    # It is another session if user code has connected it anew.
    return (raw.cursorclass, raw.charset, raw.thread_id()) if is_idle else None


#: What the driver reports of a session, and of what its cursors return; None if it is not idle.
SESSIONS: dict[str, Callable[[Any], Any]] = {
    "sqlite": attrgetter("in_transaction", "row_factory", "text_factory", "isolation_level"),
    "postgresql": _session_on_postgresql,
    "mysql": _session_on_mariadb,
}
