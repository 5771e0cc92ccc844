"""Pieces of SQL with their parameters, and the few words databases spell differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper


@dataclass(frozen=True)
class Fragment:
    """SQL and the parameters of its placeholders, in order."""

    sql: str
    params: tuple[Any, ...] = ()


def table(model: type[models.Model], connection: BaseDatabaseWrapper) -> str:
    """The quoted name of a model's table."""
    return connection.ops.quote_name(model._meta.db_table)


def update_from(
    model: type[models.Model],
    changes: str,
    *,
    source: Fragment,
    match: Fragment,
    returning: str,
    using: str,
) -> list[tuple[Any, ...]]:
    """Update the rows of `model` that `match` joins to `source`, named `s`; columns of each.

    MariaDB has no UPDATE ... RETURNING: it locks and reads the rows first. So `returning` names
    columns as they are before the change there, and after it elsewhere.
    """
    connection = connections[using]
    updated = connection.ops.quote_name(model._meta.db_table)
    params = [*source.params, *match.params]
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            joined = f"{updated} JOIN ({source.sql}) AS s ON {match.sql}"
            cursor.execute(f"SELECT {returning} FROM {joined} FOR UPDATE", params)
            found = cursor.fetchall()
            cursor.execute(f"UPDATE {joined} SET {changes}", params)
            return list(found)
        cursor.execute(
            f"UPDATE {updated} SET {changes} FROM ({source.sql}) AS s "
            f"WHERE {match.sql} RETURNING {returning}",
            params,
        )
        return list(cursor.fetchall())


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
    """An inner join that looks up the right table for each row of the left one.

    Otherwise SQLite parses a JSON document again for every row of the other table.
    """
    return "CROSS JOIN" if connection.vendor == "sqlite" else "INNER JOIN"
