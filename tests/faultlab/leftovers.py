"""The states that a body or a hook may leave behind in databases or its process, by name."""

import asyncio
import inspect
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pymysql
from django.contrib.contenttypes.models import ContentType
from django.db import connection, connections, transaction
from django.utils import translation


def leave(name: str) -> None:
    """Leaves it in the default connection of this thread."""
    _WAYS[name]()


def names(vendor: str) -> list[str]:
    """Those that `vendor` knows."""
    return [*_ANYWHERE, *_STATEMENTS[vendor], *_OF_THE_DRIVER[vendor]]


def query(seconds: str) -> None:
    """A single statement that takes at least so long."""
    _execute(
        {
            "postgresql": f"SELECT pg_sleep({seconds})",
            "mysql": f"SELECT SLEEP({seconds})",
            "sqlite": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c "
            f"WHERE x < {seconds} * 10000000) SELECT COUNT(*) FROM c",
        }[connection.vendor]
    )


def query_in_a_transaction(seconds: str) -> None:
    with transaction.atomic():
        _execute("UPDATE faultlab_specimen SET value = value WHERE id = 0")
        query(seconds)


def _execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def _raise_in_transaction() -> None:
    """A broken transaction that nobody ends; the body says what else went wrong."""
    _execute("BEGIN")
    try:
        _execute("SELECT nothing FROM nowhere")
    finally:
        raise ZeroDivisionError("as it was told")


def _close_from_outside() -> None:
    connection.ensure_connection()
    connection.connection.close()


def _begin_on_the_drivers_connection() -> None:
    connection.ensure_connection()
    connection.connection.cursor().execute("BEGIN")


def _enter_atomic() -> None:
    transaction.atomic().__enter__()


def _close_in_atomic() -> None:
    _enter_atomic()
    connection.close()


def _go_to_another_database() -> None:
    # No server has it, and SQLite cannot make it.
    connection.settings_dict["NAME"] = "/nowhere/nowhere"
    connection.close()


def _change_an_option() -> None:
    connection.settings_dict["OPTIONS"]["of_no_driver"] = 1
    connection.close()


def _put_another_in_its_place() -> None:
    connections["default"] = connections["default"].copy()


def _put_an_open_one_in_its_place() -> None:
    _put_another_in_its_place()
    _execute("BEGIN")


def _have_rows_as_dicts() -> None:
    connection.ensure_connection()
    raw = connection.connection
    if connection.vendor == "sqlite":
        raw.row_factory = lambda _, row: dict(enumerate(row))
    elif connection.vendor == "postgresql":
        raw.row_factory = psycopg.rows.dict_row
    else:
        raw.cursorclass = pymysql.cursors.DictCursor


def _set_up_by_the_driver() -> None:
    """Attributes of the driver's connection, for all transactions and texts from now on."""
    connection.ensure_connection()
    raw = connection.connection
    if connection.vendor == "sqlite":
        raw.isolation_level = "IMMEDIATE"
    elif connection.vendor == "postgresql":
        raw.read_only = True
    else:
        raw.set_character_set("latin1")


def _of_connection(name: str, value: object = None, *, part: str = "") -> Callable[[], object]:
    """An attribute of Django's connection, or of a part of it, is another one for ever."""

    def replace() -> None:
        of = connections["default"]
        setattr(getattr(of, part) if part else of, name, _refuse if value is None else value)

    return replace


def _on_commit() -> None:
    connection.run_on_commit.append((set(), _refuse, False))


#: What a module of a project keeps for ever.
_kept: list[object] = []


def _keep_rows_left() -> None:
    """The rest of a query's rows is never read, and the process refers to it for ever."""
    table = ContentType.objects.all()
    rows = table.iterator(chunk_size=1)
    next(rows)
    _kept.append(rows)


def _keep_rows_left_in_a_transaction() -> None:
    _execute("BEGIN")
    _keep_rows_left()


def _keep_rows_left_and_close() -> None:
    _keep_rows_left()
    connection.close()


def _keep_rows_left_in_the_driver(raw: Any, **options: Any) -> None:
    cursor = raw.cursor(**options)
    cursor.execute("SELECT id FROM django_content_type")
    cursor.fetchone()
    _kept.append(cursor)


def _hold_from_another_thread() -> None:
    """The connection of another thread stays open in a transaction."""

    def begin() -> None:
        with transaction.atomic(using="archive"):
            connections["archive"].cursor().execute("SELECT 1")

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()


_ANYWHERE: dict[str, Callable[[], object]] = {
    "begin": lambda: _execute("BEGIN"),
    "broken": _raise_in_transaction,
    "driver": _begin_on_the_drivers_connection,
    "atomic": _enter_atomic,
    "atomic_closed": _close_in_atomic,
    "autocommit": lambda: connection.set_autocommit(False),
    "closed": lambda: connection.close(),
    "rows_left": _keep_rows_left,
    "rows_left_begun": _keep_rows_left_in_a_transaction,
    "rows_left_closed": _keep_rows_left_and_close,
    "closed_outside": _close_from_outside,
    "all_closed": lambda: connections.close_all(),
    "rollback_needed": lambda: setattr(connection, "needs_rollback", True),
    "option": _change_an_option,
    "savepoints": lambda: connection.savepoint_ids.append("of no transaction"),
    "other_alias": lambda: connections["archive"].cursor().execute("BEGIN"),
    "thread": _hold_from_another_thread,
    "depth": lambda: sys.setrecursionlimit(len(inspect.stack(0)) + 20),
    "wrapper": lambda: connection.execute_wrappers.append(_refuse),
    "first_wrapper": lambda: connection.execute_wrappers.insert(0, _refuse),
    "other_database": _go_to_another_database,
    "removed": lambda: connections.__delitem__("default"),
    "another": _put_another_in_its_place,
    "another_open": _put_an_open_one_in_its_place,
    "factory": _have_rows_as_dicts,
    "driver_attributes": _set_up_by_the_driver,
    "cursor": _of_connection("cursor"),
    "chunked_cursor": _of_connection("chunked_cursor"),
    "commit": _of_connection("_commit"),
    "settings": _of_connection("settings_dict", {}),
    "thread_ident": _of_connection("_thread_ident", 1),
    "operations": _of_connection("quote_name", part="ops"),
    "features": _of_connection("interprets_empty_strings_as_nulls", True, part="features"),
    "on_commit": _on_commit,
    "databases": lambda: connections.databases.clear(),
    "warnings": lambda: warnings.simplefilter("error"),
    "umask": lambda: os.umask(0o777),
    "event_loop": lambda: asyncio._set_running_loop(object()),
    "language": lambda: translation.activate("ar"),
    "directory": lambda: os.chdir("/"),
    "output": lambda: setattr(sys, "stdout", None),
    "socket": lambda: socket.setdefaulttimeout(1e-6),
}
_STATEMENTS = {
    "postgresql": {
        "read_only": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "role": "SET ROLE pg_monitor",
        "search_path": "SET search_path TO nowhere",
        "configured": "SELECT set_config('search_path', 'nowhere', false)",
        "timeout": "SET statement_timeout TO 1",
        "lock": "SELECT pg_advisory_lock(4711)",
        "two": "SELECT 1; SET search_path TO nowhere",
        "listen": "LISTEN faultlab",
        "temporary": "SELECT 1 AS id INTO  TEMP autorun_run",
    },
    "mysql": {
        "read_only": "SET SESSION TRANSACTION READ ONLY",
        "lock": "SELECT GET_LOCK('faultlab', 0)",
        "tables": "LOCK TABLES faultlab_specimen READ",
        "timeout": "SET SESSION max_statement_time = 0.000001",
        "mode": "SET SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'",
        "no_autocommit": "SET autocommit = 0",
        "used": "USE information_schema",
        "temporary": "CREATE TEMPORARY TABLE autorun_run (id INT)",
    },
    "sqlite": {
        "read_only": "PRAGMA query_only = ON",
        "lock": "BEGIN IMMEDIATE",
        "exclusive": "PRAGMA locking_mode = EXCLUSIVE",
        "temporary": "CREATE TEMP TABLE autorun_run (id)",
    },
}


def _refuse(*_: object) -> None:
    raise RuntimeError("a wrapper that was left behind")


def _execute_around_django(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.cursor.execute(sql)


class _Broken(psycopg.types.numeric.IntLoader):
    def load(self, data: Any) -> Any:
        raise ValueError("a loader that was left behind")


class _BrokenDumper(psycopg.types.string.StrDumper):
    def dump(self, obj: Any) -> Any:
        raise ValueError("a dumper that was left behind")


_OF_THE_DRIVER: dict[str, dict[str, Callable[[Any], object]]] = {
    "postgresql": {
        "driver_path": lambda raw: raw.execute("SET search_path TO nowhere"),
        "driver_rows_left": partial(_keep_rows_left_in_the_driver, name="faultlab", withhold=True),
        "driver_cursor": lambda _: _execute_around_django("CREATE TEMP TABLE autorun_run (id int)"),
        "driver_procedure": lambda _: connection.cursor().callproc(
            "set_config", ["search_path", "nowhere", "false"]
        ),
        "driver_loader": lambda raw: raw.adapters.register_loader("int8", _Broken),
        "driver_dumper": lambda raw: raw.adapters.register_dumper(str, _BrokenDumper),
        "driver_factory": lambda raw: setattr(raw, "server_cursor_factory", None),
        "driver_method": lambda raw: setattr(raw, "cursor", _refuse),
    },
    "mysql": {
        "driver_database": lambda raw: raw.cursor().execute("USE information_schema"),
        "driver_query": lambda raw: raw.query("USE information_schema"),
        "driver_selected": lambda raw: raw.select_db("information_schema"),
        "driver_began": lambda raw: raw.query("BEGIN"),
        "driver_connected": lambda raw: (raw.close(), raw.ping(reconnect=True)),
        "driver_rows_left": partial(_keep_rows_left_in_the_driver, cursor=pymysql.cursors.SSCursor),
        "driver_cursor": lambda _: _execute_around_django(
            "CREATE TEMPORARY TABLE autorun_run (id INT)"
        ),
        "driver_decoders": lambda raw: raw.decoders.clear(),
        "driver_encoders": lambda raw: raw.encoders.clear(),
        "driver_time": lambda raw: setattr(raw, "_read_timeout", 1e-6),
        "driver_method": lambda raw: setattr(raw, "query", _refuse),
    },
    "sqlite": {
        "driver_began": lambda raw: raw.execute("BEGIN IMMEDIATE"),
        "driver_rows_left": _keep_rows_left_in_the_driver,
        "driver_progress": lambda raw: raw.set_progress_handler(lambda: 1, 1),
        "driver_table": lambda raw: raw.execute("CREATE TEMP TABLE autorun_run (id)"),
        "driver_view": lambda raw: raw.executescript(
            "CREATE TEMP VIEW autorun_chunk AS SELECT 1 AS id"
        ),
    },
}


def _leave_by_the_driver(act: Callable[[Any], object]) -> None:
    connection.ensure_connection()
    act(connection.connection)


_FUNCTION = """CREATE FUNCTION faultlab_leave() RETURNS INT
BEGIN SET SESSION max_statement_time = 0.000001; RETURN 1; END"""


def _change_session_unnoticed() -> None:
    """As neither Django nor the driver tell."""
    connection.ensure_connection()
    raw = connection.connection
    if connection.vendor == "postgresql":
        raw.pgconn.exec_(b"SET search_path TO nowhere")
    elif connection.vendor == "sqlite":
        raw.execute("PRAGMA query_only = ON")
    else:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION IF EXISTS faultlab_leave")
            cursor.execute(_FUNCTION)
        connection.close()
        _execute("SELECT faultlab_leave()")


_WAYS = _ANYWHERE | {"unnoticed": _change_session_unnoticed}
_WAYS |= {
    name: (lambda sql=sql: _execute(sql)) for name, sql in _STATEMENTS[connection.vendor].items()
}
_WAYS |= {
    name: partial(_leave_by_the_driver, act)
    for name, act in _OF_THE_DRIVER[connection.vendor].items()
}
