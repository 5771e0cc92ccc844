"""Tells which statements of user code change a session, and sees those given to the driver itself.

Django's wrappers do not see the latter. Drivers in C cannot be watched.
"""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import unwrap
from types import FrameType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

#: The beginnings of statements that do not change a session.
_ORDINARY = (
    *("select", "insert", "update", "delete", "with", "values", "table ", "replace", "merge"),
    *("savepoint", "release", "rollback to", "explain", "show", "truncate", "analyze", "refresh"),
    "copy",
)
#: What makes such a statement change it after all. Anything may follow a semicolon.
_CHANGES_SESSION = re.compile(
    r"advisory_lock|get_lock|set_config|\binto\s+(?:local\s+|global\s+)?temp|@\w+\s*:=|\binto\s*@|;\s*\S"
).search
_DRIVERS = ("psycopg", "pymysql", "MySQLdb")
#: Modules between a driver and the caller of a cursor of Django's.
_BESIDE_DRIVERS = (*_DRIVERS, "django.db.backends.postgresql", "django.db.backends.mysql")
#: Modules that leave no session changed, or whose statements Django's wrappers see.
_NOT_OF_USERS = ("django.", "autorun.")
#: Methods of a driver's connection that are watched: psycopg's cursors give each statement to
#: `wait`, and those of MariaDB to `query`.
_ENTRANCES = ("cursor", "wait", "query", "select_db", "change_user", "set_character_set")
#: Django's function that opens a connection.
_OPEN = unwrap(BaseDatabaseWrapper.connect).__code__
_NO_TEXT = object()


def changes_session(sql: object, vendor: str) -> bool:
    """Whether a statement may change its session. One that is not a text may."""
    if isinstance(sql, (bytes, bytearray)):
        sql = sql.decode("latin1")
    text = sql.lower() if isinstance(sql, str) else ""
    is_ordinary = text.lstrip("( \n\t\r").startswith(_ORDINARY) or (
        # Django's own, on SQLite alone.
        vendor == "sqlite" and text.startswith("begin")
    )
    return not is_ordinary or _CHANGES_SESSION(text) is not None


def is_opening() -> bool:
    """Whether a connection is being opened: what a project does then is part of it."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not _OPEN:
        frame = frame.f_back
    return frame is not None


def watch(raw: Any, *, is_of_users: Callable[[], bool], note: Callable[[Any], object]) -> None:
    """Call `note` with the driver's connection before user code changes its session through it.

    `is_of_users` tells whether user code is called at the moment.
    """
    if "cursor" in getattr(raw, "__dict__", ()):
        return  # a pool hands it to one thread after another
    for name in _ENTRANCES:
        with suppress(AttributeError):  # it has no such method, or the driver is in C
            method = partial(_watched, raw, name, getattr(raw, name), is_of_users, note)
            setattr(raw, name, method)


def _watched(
    raw: Any,
    name: str,
    method: Callable[..., Any],
    is_of_users: Callable[[], bool],
    note: Callable[[Any], object],
    /,
    *args: Any,
    **options: Any,
) -> Any:
    if is_of_users() and _may_change(name, args) and not is_opening():
        note(raw)
    return method(*args, **options)


def _may_change(name: str, args: tuple[Any, ...]) -> bool:
    """Whether user code calls the watched method, and may change the session by it."""
    first = frame = sys._getframe(2)
    # `is_usable()`, for example, has a cursor of its own.
    between = _DRIVERS if name == "cursor" else _BESIDE_DRIVERS
    while (module := frame.f_globals.get("__name__", "")).startswith(between):
        if frame.f_back is None:
            return False
        frame = frame.f_back
    # That method of Django's passes its wrappers by.
    if module.startswith(_NOT_OF_USERS) and frame.f_code.co_name != "callproc":
        return False
    if name == "query":
        return changes_session(args[0] if args else None, "")
    if name == "wait":  # also for a row that is read or copied
        given = first.f_locals
        sql = given.get("query", given.get("statement", _NO_TEXT))
        return sql is not _NO_TEXT and changes_session(sql, "")
    return True
