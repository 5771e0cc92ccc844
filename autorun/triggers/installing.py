"""Triggers in the database: installed, replaced and removed, and compared with the runners."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.conf import settings
from autorun.state.transactions import sqlstate
from autorun.triggers import on_write
from autorun.triggers.definitions import Definition, definition

#: Seconds that creating or dropping a trigger waits for writers of its table.
LONGEST_WAIT = 10
#: The error of MariaDB if its binary log is on and the user lacks the privilege SUPER.
BINARY_LOG_FORBIDS = 1419
ASK_ADMINISTRATOR = (
    "Ask a database administrator to run `SET GLOBAL log_bin_trust_function_creators = 1`, and "
    "then run `manage.py autorun triggers --install`; or to install what "
    "`manage.py autorun triggers --sql` prints."
)

#: The state of a table that is not there.
NO_TABLE = "no such table"
ADD_TABLE = (
    "There is no such table. `manage.py migrate` creates it and its triggers. If its model has "
    "managed = False, create it, and then run `manage.py autorun triggers --install`."
)
#: SQLSTATE of PostgreSQL, and errors of MariaDB, if the user lacks a privilege.
NO_PRIVILEGE = {"42501", 1142, 1227}
_USER = {
    "postgresql": "SELECT quote_ident(current_user)",
    "mysql": "SELECT CONCAT('`', REPLACE(CURRENT_USER(), '@', '`@`'), '`')",
}

#: On PostgreSQL, whether a function is of this schema: another one may have its own autorun.
_OWN_SCHEMA = (
    "p.pronamespace = (SELECT relnamespace FROM pg_class "
    "WHERE oid = to_regclass('autorun_written'))"
)
_EXISTING = {
    "postgresql": (
        "SELECT t.tgname, c.oid::regclass::text, t.tgenabled IN ('O', 'A'), c.relname "
        "FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid "
        "JOIN pg_proc AS p ON p.oid = t.tgfoid "
        f"WHERE t.tgname LIKE 'autorun\\_write\\_%' AND t.tgparentid = 0 AND {_OWN_SCHEMA}"
    ),
    "mysql": (
        "SELECT TRIGGER_NAME, CONCAT('`', EVENT_OBJECT_TABLE, '`'), TRUE, EVENT_OBJECT_TABLE, "
        "ACTION_STATEMENT FROM information_schema.TRIGGERS "
        "WHERE TRIGGER_SCHEMA = DATABASE() AND TRIGGER_NAME LIKE 'autorun\\_write\\_%'"
    ),
    "sqlite": (
        "SELECT name, tbl_name, TRUE, tbl_name FROM sqlite_master "
        "WHERE type = 'trigger' AND name LIKE 'autorun\\_write\\_%' ESCAPE '\\'"
    ),
}


#: Whether MariaDB's binary log forbids this user to create and to drop triggers.
FORBIDS_TRIGGERS = (
    "SELECT @@log_bin AND NOT @@log_bin_trust_function_creators AND NOT EXISTS "
    "(SELECT 1 FROM information_schema.USER_PRIVILEGES WHERE PRIVILEGE_TYPE = 'SUPER')"
)


@dataclass(frozen=True)
class Existing:
    """A trigger of autorun's in the database; `sql_table` is the name of its table in SQL."""

    name: str
    sql_table: str
    is_enabled: bool
    table: str
    body: str = ""  # known on MariaDB

    @property
    def columns(self) -> set[str]:
        return set(re.findall(r"\b(?:OLD|NEW)\.`([^`]+)`", self.body))


@dataclass(frozen=True)
class Status:
    """The state of one table's triggers: "installed", or the reason why they need work."""

    table: str
    state: str


def wanted() -> list[Definition]:
    """The definitions of all tables that runners with ON_WRITE read."""
    tables = on_write.tables()
    if not tables:
        return []
    connection = connections[settings.DATABASE]
    schema, partitioned = _schema(connection)
    return [
        definition(table, connection, schema=schema, is_partitioned=table.name in partitioned)
        for table in tables.values()
    ]


def existing() -> list[Existing]:
    found = _asked(_EXISTING[connections[settings.DATABASE].vendor])
    return [Existing(name, table, bool(is_on), *rest) for name, table, is_on, *rest in found]


def statuses() -> list[Status]:
    """The state of every table that has triggers or should have some."""
    there, definitions = existing(), wanted()
    lacking = _lacking(definitions)
    names = {each.name for each in there}
    off = {each.name for each in there if not each.is_enabled}
    outdated = {each.table for each in there if each.name not in _names(definitions)}
    states: dict[str, str] = {}
    for each in definitions:
        table, state = each.table.name, "installed"
        if table in lacking:
            state = NO_TABLE
        elif not names.issuperset(each.names):
            state = "outdated" if table in outdated else "missing"
        elif off.intersection(each.names):
            state = "disabled"
        if states.get(table, "installed") == "installed":
            states[table] = state
    leftover = {each.table for each in there} - states.keys()
    states |= dict.fromkeys(sorted(leftover), "not needed")
    return [Status(table, state) for table, state in states.items()]


def install() -> list[str]:
    """Create the triggers that are missing, and drop those not wanted. Return the errors."""
    connection = connections[settings.DATABASE]
    there = existing()
    names = {each.name for each in there if each.is_enabled}
    definitions = wanted()
    current, lacking = _names(definitions), _lacking(definitions)
    errors: dict[str, list[str]] = {ADD_TABLE: lacking} if lacking else {}
    tables = {each.table.name for each in definitions}
    unwanted = [known for known in there if known.table not in tables]
    for each in definitions:
        table = each.table.name
        if table in lacking:
            continue
        statements = [*each.statements]
        if names.issuperset(each.names):
            statements = []
        elif connection.vendor == "sqlite":
            # SQLite replaces no trigger, and finds a column that is not there only at an UPDATE,
            # which would fail.
            broken = [known for known in there if known.name in each.names]
            proof = f"EXPLAIN UPDATE {each.sql_table} SET {each.sql_key} = {each.sql_key}"
            statements = [*map(drop_statement, broken), *statements, proof]
        if statements and (error := _attempt(statements, grant_statement(each.sql_table))):
            errors.setdefault(error, []).append(table)
            continue  # until then the outdated ones stay
        unwanted += [known for known in there if known.table == table and known.name not in current]
    refused = [f"{', '.join(dict.fromkeys(each))}: {message}" for message, each in errors.items()]
    return refused + remove(unwanted)


def remove(some: Sequence[Existing] | None = None) -> list[str]:
    """Drop these triggers, or all of autorun's, and unused functions. Return the errors."""
    found = existing() if some is None else dict.fromkeys(some)
    drops = [(each.table, drop_statement(each)) for each in found]
    errors = [f"{table}: {error}" for table, drop in drops if (error := _attempt([drop], drop))]
    return errors + [error for each in _unused() if (error := _attempt([each], each))]


def is_forbidden() -> bool:
    """Whether the database's binary log forbids this user to create and to drop triggers."""
    is_mysql = connections[settings.DATABASE].vendor == "mysql"
    return is_mysql and bool(_asked(FORBIDS_TRIGGERS)[0][0])


def drop_statement(trigger: Existing) -> str:
    connection = connections[settings.DATABASE]
    of_table = f" ON {trigger.sql_table}" if connection.vendor == "postgresql" else ""
    return f"DROP TRIGGER IF EXISTS {connection.ops.quote_name(trigger.name)}{of_table}"


def _asked(sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """The rows that autorun's database answers with."""
    with connections[settings.DATABASE].cursor() as cursor:
        cursor.execute(sql, params or None)
        return list(cursor.fetchall())


def _names(definitions: Sequence[Definition]) -> set[str]:
    return {name for each in definitions for name in each.names}


def grant_statement(sql_table: str) -> str:
    """The statement by which the owner of a table allows this user to create its triggers."""
    vendor = connections[settings.DATABASE].vendor
    return (
        f"GRANT TRIGGER ON {sql_table} TO {_asked(_USER[vendor])[0][0]}" if vendor in _USER else ""
    )


def grants_needed() -> list[str]:
    """The `grant_statement` of each table on which PostgreSQL lets this user create no trigger."""
    if connections[settings.DATABASE].vendor != "postgresql":
        return []
    tables = dict.fromkeys(each.sql_table for each in wanted())
    without = _asked(
        "SELECT t FROM unnest(%s::text[]) AS t "
        "WHERE NOT has_table_privilege(to_regclass(t), 'TRIGGER')",
        [*tables],
    )
    return [grant_statement(table) for (table,) in without]


def ask_owner(statement: str) -> str:
    return (
        f"Ask the owner of the table, or a database administrator, to run `{statement}`, and then "
        "run `manage.py autorun triggers --install`."
    )


def _lacking(definitions: Sequence[Definition]) -> list[str]:
    """The tables of these definitions that the database does not have."""
    connection = connections[settings.DATABASE]
    tables = {each.sql_table: each.table.name for each in definitions}
    if not tables:
        return []
    if connection.vendor == "postgresql":  # they may be in any schema
        absent = "SELECT t FROM unnest(%s::text[]) AS t WHERE to_regclass(t) IS NULL"
        return [tables[name] for (name,) in _asked(absent, [*tables])]
    names = connection.introspection.table_names(include_views=True)
    there = set(map(str.lower, names))
    return [name for name in dict.fromkeys(tables.values()) if name.lower() not in there]


def _attempt(statements: Sequence[str], remedy: str) -> str:
    """Execute the statements. Return the error, or ''.

    It quotes `remedy`, a statement for the owner of the table, if this user lacks a privilege.
    """
    connection = connections[settings.DATABASE]
    try:
        with _briefly(connection):
            _execute(connection, statements)
    except DatabaseError as error:
        code = sqlstate(error) or (error.args and error.args[0])
        if code == BINARY_LOG_FORBIDS:
            return f"{error.args[1]}. {ASK_ADMINISTRATOR}"
        words = str(error).strip()
        return f"{words}. {ask_owner(remedy)}" if code in NO_PRIVILEGE else words
    return ""


def _schema(connection: BaseDatabaseWrapper) -> tuple[str, Sequence[str]]:
    """On PostgreSQL, the schema of autorun's tables, quoted, and the partitioned tables."""
    if connection.vendor != "postgresql":
        return "", ()
    found = _asked(
        "SELECT quote_ident(n.nspname), "
        "ARRAY(SELECT relname::text FROM pg_class WHERE relkind = 'p') "
        "FROM pg_class AS c JOIN pg_namespace AS n "
        "ON n.oid = c.relnamespace WHERE c.oid = to_regclass('autorun_written')"
    )
    return found[0] if found else ("", ())


def _unused() -> list[str]:
    """Statements that drop the functions on PostgreSQL that have no trigger."""
    if connections[settings.DATABASE].vendor != "postgresql":
        return []
    unused = _asked(
        "SELECT 'DROP FUNCTION ' || p.oid::regprocedure::text FROM pg_proc AS p "
        f"WHERE p.proname LIKE 'autorun\\_write\\_%' AND {_OWN_SCHEMA} "
        "AND NOT EXISTS (SELECT 1 FROM pg_trigger AS t WHERE t.tgfoid = p.oid)"
    )
    return [statement for (statement,) in unused]


@contextmanager
def _briefly(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """A transaction, if the database has one for DDL, that does not wait long for a lock."""
    if connection.vendor == "postgresql":
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = '{LONGEST_WAIT:d}s'")
            yield
    elif connection.vendor == "mysql":
        yield
    else:
        with transaction.atomic(using=connection.alias):
            yield


def _execute(connection: Any, statements: Sequence[str]) -> None:
    is_mariadb = connection.vendor == "mysql" and connection.mysql_is_mariadb
    waited = f"SET STATEMENT lock_wait_timeout = {LONGEST_WAIT:d} FOR "
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute((waited if is_mariadb else "") + statement)
