"""What user code may leave in a connection to SQLite, of whose state the driver reports little."""

from __future__ import annotations

import gc
import sqlite3
from contextlib import closing, suppress
from operator import is_
from typing import Any

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
    except (sqlite3.OperationalError, AttributeError):  # none, or SQLite cannot tell
        return None
    return bool(raw.execute("SELECT 1 FROM sqlite_temp_master").fetchall())


def end_cursors(raw: Any) -> None:
    """End the cursors of a connection: they would outlive it, and keep its lock."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as nowhere:
        for each in gc.get_referrers(raw):
            if isinstance(each, sqlite3.Cursor):
                sqlite3.Cursor.__init__(each, nowhere)
