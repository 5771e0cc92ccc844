"""Pieces of SQL with their parameters, and the few words databases spell differently.

Also queries that a process compiles once, since Django takes longer to write their SQL than to send
it. They are written like any other, with a `Slot` in place of each value that differs from call to
call. Whatever else they read, such as a setting, becomes part of the SQL.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.core.signals import setting_changed
from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.sql import InsertQuery, UpdateQuery

from autorun.conf import settings
from autorun.state.waits import bounded, in_order, takes_several


@dataclass(frozen=True)
class Fragment:
    """SQL and the parameters of its placeholders, in order."""

    sql: str
    params: tuple[Any, ...] = ()


class Slot(models.Expression):
    """A value that is given when a prepared query is executed, as the argument `name`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def as_sql(self, *_: Any, **__: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        return "%s", [self]


def prepared(build: Callable[[], models.QuerySet[Any]]) -> Callable[..., Any]:
    """Return a function that reads the rows of the queryset that `build` makes.

    With a statement to execute before, `after`, it returns None if that finds no row.
    """

    def read(*, after: Fragment | None = None, **values: Any) -> list[Any] | None:
        using = settings.DATABASE
        if (key := (build, using)) not in _compiled:
            template = build()
            compiler = template.query.get_compiler(using)
            compiled = _with_names(*compiler.as_sql())
            converters = compiler.get_converters([each for each, *_ in compiler.select])
            compiler.get_converters = lambda _: converters
            _compiled[key] = (template, compiler, *compiled)
        template, compiler, sql, names, constants = _compiled[key]
        params = tuple(map((constants | values).__getitem__, names))
        bound = _alike(compiler)
        bound.connection = connections[using]
        bound.as_sql = lambda *_, **__: (sql, params)
        if after is not None:
            if (found := _rows_after(after, Fragment(sql, params))) is None:
                return None
            bound.execute_sql = lambda *_, **__: [found]
        rows, rows._query = _alike(template), _alike(template.query)
        rows.query.get_compiler = lambda *_, **__: bound
        return list(rows._iterable_class(rows))

    return read


def prepared_update(
    build: Callable[[], tuple[models.QuerySet[Any], Mapping[str, Any]]],
) -> Callable[..., Fragment]:
    """Return a function that makes the SQL of the changes that `build` names to its queryset."""

    def compiled(using: str) -> tuple[str, Sequence[Any]]:
        rows, changes = build()
        query: Any = rows.query.chain(UpdateQuery)
        query.add_update_values(changes)
        return query.get_compiler(using).as_sql()  # type: ignore[no-any-return]

    return _prepared_statement(build, compiled)


def prepared_insert(build: Callable[[], models.Model]) -> Callable[..., Fragment]:
    """Return a function that makes the SQL to insert the row that `build` makes.

    If the database gives it a primary key, the statement returns that.
    """

    def compiled(using: str) -> tuple[str, Sequence[Any]]:
        row = build()
        fields = list(row._meta.local_concrete_fields)
        if row.pk is None:
            fields.remove(row._meta.pk)
        query = InsertQuery(type(row))
        query.insert_values(fields, [row])
        compiler = query.get_compiler(using)
        compiler.returning_fields = [row._meta.pk] if row.pk is None else None
        return compiler.as_sql()[0]  # type: ignore[no-any-return]

    return _prepared_statement(build, compiled)


def _prepared_statement(
    build: Callable[[], Any], compiled: Callable[[str], tuple[str, Sequence[Any]]]
) -> Callable[..., Fragment]:
    def bind(**values: Any) -> Fragment:
        using = settings.DATABASE
        if (key := (build, using)) not in _compiled:
            _compiled[key] = _with_names(*compiled(using))
        sql, names, constants = _compiled[key]
        return Fragment(sql, tuple(map((constants | values).__getitem__, names)))

    return bind


def changed_by(statement: Fragment) -> int:
    """Execute the statement. Return how many rows it has changed."""
    using = settings.DATABASE
    with transaction.mark_for_rollback_on_error(using=using), connections[using].cursor() as cursor:
        cursor.execute(statement.sql, statement.params)
        return int(cursor.rowcount)


def insert_both(one: Fragment, another: Fragment) -> int:
    """Insert two rows in one transaction. Return the key that the database gives to the first."""
    # PostgreSQL gets both in one message, which is a transaction.
    using = settings.DATABASE
    connection = connections[using]
    is_one = connection.vendor == "postgresql" and takes_several(connection)
    with (
        transaction.mark_for_rollback_on_error(using=using)
        if is_one
        else transaction.atomic(using),
        connection.cursor() as cursor,
    ):
        if is_one:
            cursor.execute(f"{one.sql}; {another.sql}", (*one.params, *another.params))
            return int(cursor.fetchone()[0])
        cursor.execute(one.sql, one.params)
        key = int(cursor.fetchone()[0])
        cursor.execute(another.sql, another.params)
        return key


def _rows_after(first: Fragment, second: Fragment) -> list[Any] | None:
    """The rows of the second statement, or None if the first finds none."""
    # PostgreSQL and MariaDB get both in one message, and execute them one after the other: the
    # second sees what others had committed when the first had its locks.
    using = settings.DATABASE
    connection = connections[using]
    params = (*first.params, *second.params)
    with transaction.mark_for_rollback_on_error(using=using), connection.cursor() as cursor:
        if connection.vendor == "mysql":
            is_read = first.sql.startswith("SELECT")
            has_found = "FOUND_ROWS()" if is_read else "ROW_COUNT()"
            then = f"IF {has_found} > 0 THEN {second.sql}; END IF"
            cursor.execute(in_order(bounded(first.sql), then), params)
            if is_read and cursor.rowcount:
                cursor.nextset()
            elif is_read or cursor.description is None:
                return None
            return _fetched(cursor)
        if takes_several(connection):
            cursor.execute(f"{first.sql}; {second.sql}", params)
            if not cursor.rowcount:
                return None
            cursor.cursor.nextset()
        else:
            cursor.execute(first.sql, first.params)
            if not cursor.rowcount:
                return None
            cursor.execute(second.sql, second.params)
        return list(cursor.fetchall())


def _fetched(cursor: Any) -> list[Any]:
    """The rows, once the statements after theirs have succeeded as well."""
    rows = list(cursor.fetchall())
    while cursor.nextset():
        pass
    return rows


#: What was compiled, by its function and the alias of the database.
_compiled: dict[tuple[Any, str], Any] = {}


def _with_names(sql: str, params: Sequence[Any]) -> tuple[str, list[Any], dict[Any, Any]]:
    """The SQL, a name for each of its parameters, and the values of those that have no slot."""
    names = [each.name if isinstance(each, Slot) else at for at, each in enumerate(params)]
    return sql, names, dict(enumerate(params))


def _alike(value: Any) -> Any:
    """A copy that shares its attributes; `copy.copy` would evaluate a queryset."""
    made = object.__new__(type(value))
    made.__dict__.update(value.__dict__)
    return made


setting_changed.connect(lambda **_: _compiled.clear(), weak=False, dispatch_uid=__name__)


#: By vendor: an aggregate of rows, and a row of values, as JSON.
JSON_ROWS = {
    "postgresql": ("jsonb_agg", "jsonb_build_array"),
    "sqlite": ("json_group_array", "json_array"),
    "mysql": ("JSON_ARRAYAGG", "JSON_ARRAY"),
}


class RowsAsJSON(models.Subquery):
    """All rows of a queryset of `width` columns as one value: a list of lists, or None."""

    def __init__(self, queryset: models.QuerySet[Any], *, width: int) -> None:
        super().__init__(queryset, models.JSONField())
        self.columns = ", ".join(f"c{at}" for at in range(width))

    def as_sql(self, compiler: Any, connection: Any, *_: Any, **__: Any) -> Any:
        gather, row = JSON_ROWS[connection.vendor]
        rows = f"{gather}({row}({self.columns}))"
        return super().as_sql(
            compiler, connection, f"(WITH k({self.columns}) AS (%(subquery)s) SELECT {rows} FROM k)"
        )


def table(model: type[models.Model], connection: BaseDatabaseWrapper) -> str:
    """The quoted name of a model's table."""
    return connection.ops.quote_name(model._meta.db_table)


#: Two updates in one statement: the second is joined to what the first has changed.
_IN_ORDER = (
    "WITH first AS ({} RETURNING 1), changed AS ({}) "
    "SELECT changed.* FROM first LEFT JOIN changed ON TRUE"
)


class Unmatched(Exception):
    """The update that was to come first found no row."""


def update_from(
    model: type[models.Model],
    changes: str,
    *,
    source: Fragment,
    key: str,
    returning: str,
    only: Fragment = Fragment("TRUE"),
    first: Fragment | None = None,
) -> list[tuple[Any, ...]]:
    """Update the rows that pass `only` and that the `key` of `source`, named `s`, names.

    Returns columns of each, as before the change on MariaDB; the first must never be NULL. `first`
    locks its row before, on PostgreSQL in one statement, and raises Unmatched if there is none.
    """
    connection = connections[settings.DATABASE]
    updated = connection.ops.quote_name(model._meta.db_table)
    params = [*source.params, *only.params]
    # PostgreSQL expects half of the rows to pass a CASE, and so joins by hash or by the key.
    match = f"id = s.{key} AND CASE WHEN {only.sql} THEN TRUE ELSE FALSE END"
    sql = f"({source.sql}) AS s WHERE {match} RETURNING {returning}"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql" and first is not None:
            second = f"UPDATE {updated} SET {changes} FROM first, {sql}"
            cursor.execute(_IN_ORDER.format(first.sql, second), [*first.params, *params])
            if not (rows := cursor.fetchall()):
                raise Unmatched
            return [] if rows[0][0] is None else list(rows)
        if connection.vendor == "mysql":
            joined = f"{updated} JOIN ({source.sql.replace('%s', 'autorun_rows')}) AS s ON {match}"
            both = f"SELECT {returning} FROM {joined} FOR UPDATE", f"UPDATE {joined} SET {changes}"
            return _read_and_change(cursor, *both, source.params, only.params, first)
        if first is not None:
            cursor.execute(first.sql, first.params)
            if not cursor.rowcount:
                raise Unmatched
        cursor.execute(f"UPDATE {updated} SET {changes} FROM {sql}", params)
        return list(cursor.fetchall())


def _read_and_change(
    cursor: Any,
    read: str,
    change: str,
    document: tuple[Any, ...],
    params: tuple[Any, ...],
    first: Fragment | None,
) -> list[tuple[Any, ...]]:
    """The rows that MariaDB reads and then changes, if `first` has found its own."""
    # The JSON document of the source may be long, and is sent once, as `autorun_rows`.
    steps = [bounded(read), bounded(change)]
    if first is not None:
        steps = [bounded(first.sql), f"IF ROW_COUNT() > 0 THEN {steps[0]}", steps[1], "END IF"]
        document = (*document, *first.params)
    begin = "DECLARE autorun_rows LONGTEXT CHARACTER SET utf8mb4 DEFAULT %s"
    cursor.execute(in_order(begin, *steps), (*document, *params, *params))
    if cursor.description is None:
        raise Unmatched
    return _fetched(cursor)


def insert_ignoring_conflicts(connection: BaseDatabaseWrapper) -> tuple[str, str]:
    """The beginning and the end of an INSERT that skips existing rows."""
    if connection.vendor == "mysql":
        return "INSERT IGNORE INTO", ""
    return "INSERT INTO", "ON CONFLICT DO NOTHING"


def whole_quotient(connection: BaseDatabaseWrapper, dividend: str, divisor: str) -> str:
    """`dividend / divisor` without its fraction."""
    if connection.vendor == "mysql":
        return f"({dividend}) DIV {divisor}"
    return f"({dividend}) / {divisor}"


def join_in_this_order(connection: BaseDatabaseWrapper) -> str:
    """An inner join that looks up the right table for each row of the left one."""
    # Otherwise SQLite parses a JSON document again for every row of the other table.
    return "CROSS JOIN" if connection.vendor == "sqlite" else "INNER JOIN"


#: The types of a recordset that a database names differently.
_POSTGRESQL = {"fingerprint": "uuid"}
_MARIADB = {"text": "LONGTEXT", "real": "FLOAT", "fingerprint": "CHAR(32)"}
#: Code points without a meaning of their own, more than a document has characters.
_PRIVATE_USE = range(0xF0000, 0x10FFFE)


def recordset(
    connection: BaseDatabaseWrapper, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]
) -> Fragment:
    """A SELECT of `rows`, whose values are JSON scalars, with `columns` as {name: type}.

    The types are "bigint", "integer", "smallint", "boolean", "real", "text" and "fingerprint".
    """
    listed = list(rows)
    if connection.vendor == "postgresql":
        return _arrays(columns, listed)
    document = json.dumps(listed, ensure_ascii=False)
    kinds = tuple(columns.items())
    if connection.vendor != "sqlite" or "\\u0000" not in document:
        return Fragment(_select_of_json(connection.vendor, kinds), (document,))
    # SQLite's JSON functions end a text at NUL, so another character stands in for it.
    stand_in = next(mark for mark in map(chr, _PRIVATE_USE) if mark not in document)
    texts = list(columns.values()).count("text")
    written = [
        [value.replace("\0", stand_in) if isinstance(value, str) else value for value in row]
        for row in listed
    ]
    return Fragment(
        _select_of_json("sqlite", kinds, with_nul=True),
        (stand_in,) * texts + (json.dumps(written, ensure_ascii=False),),
    )


def keyed_recordset(
    connection: BaseDatabaseWrapper, columns: Mapping[str, str], rows: Iterable[tuple[Any, Any]]
) -> Fragment:
    """The recordset of two columns, the first a "bigint" without duplicates."""
    # SQLite reads the members of one object eight times as fast as a list of lists.
    if connection.vendor != "sqlite":
        return recordset(connection, columns, rows)
    number, value = columns
    sql = f"SELECT CAST(key AS INTEGER) AS {number}, value AS {value} FROM json_each(%s)"
    return Fragment(sql, (json.dumps(dict(rows)),))


def _arrays(columns: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> Fragment:
    """One array for each column: half the work of jsonb_to_recordset, and of known length."""
    arrays, params = [], []
    by_column = zip(*rows, strict=True) if rows else ((),) * len(columns)
    for kind, values in zip(columns.values(), by_column, strict=True):
        if kind == "text":
            arrays.append("ARRAY(SELECT json_array_elements_text(%s::json))")
            params.append(json.dumps(values, ensure_ascii=False))
        else:
            arrays.append(f"%s::{_POSTGRESQL.get(kind, kind)}[]")
            texts = ("NULL" if value is None else str(value) for value in values)
            params.append(f"{{{','.join(texts)}}}")
    sql = f"SELECT * FROM unnest({', '.join(arrays)}) AS j({', '.join(columns)})"
    return Fragment(sql, tuple(params))


@cache
def _select_of_json(
    vendor: str, columns: tuple[tuple[str, str], ...], *, with_nul: bool = False
) -> str:
    if vendor == "mysql":
        declared = ", ".join(
            f"{name} {_MARIADB.get(kind, kind)} PATH '$[{number}]'"
            for number, (name, kind) in enumerate(columns)
        )
        return f"SELECT * FROM JSON_TABLE(%s, '$[*]' COLUMNS({declared})) AS j"
    extracted = []
    for number, (name, kind) in enumerate(columns):
        value = f"json_extract(value, '$[{number}]')"
        if with_nul and kind == "text":
            value = f"replace({value}, %s, char(0))"
        extracted.append(f"{value} AS {name}")
    return f"SELECT {', '.join(extracted)} FROM json_each(%s)"
