"""A list of values as a table in SQL, in few parameters however many rows, on every database.

Measured on 1,000 updates: one UPDATE from such a table 30,000 rows/s on PostgreSQL and 133,000
on SQLite, `bulk_update` 900.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.state.sql import Fragment

_POSTGRESQL = {
    "bigint": "bigint",
    "integer": "integer",
    "smallint": "smallint",
    "boolean": "boolean",
    "text": "text",
    "fingerprint": "uuid",
}
_MARIADB = {
    "bigint": "BIGINT",
    "integer": "INT",
    "smallint": "SMALLINT",
    "boolean": "BOOLEAN",
    "text": "LONGTEXT",
    "fingerprint": "CHAR(32)",
}


def recordset(
    connection: BaseDatabaseWrapper,
    columns: Mapping[str, str],
    rows: Iterable[Sequence[Any]],
) -> Fragment:
    """A SELECT of `rows`, whose values are JSON scalars, with `columns` as {name: type}.

    The types are "bigint", "integer", "smallint", "boolean", "text" and "fingerprint".
    """
    listed = list(rows)
    if connection.vendor == "postgresql":
        return _arrays(columns, listed)
    document = json.dumps(listed)
    if connection.vendor == "mysql":
        declared = ", ".join(
            f"{name} {_MARIADB[kind]} PATH '$[{number}]'"
            for number, (name, kind) in enumerate(columns.items())
        )
        sql = f"SELECT * FROM JSON_TABLE(%s, '$[*]' COLUMNS({declared})) AS j"
    else:
        extracted = ", ".join(
            f"json_extract(value, '$[{number}]') AS {name}" for number, name in enumerate(columns)
        )
        sql = f"SELECT {extracted} FROM json_each(%s)"
    return Fragment(sql, (document,))


def keyed_recordset(
    connection: BaseDatabaseWrapper,
    columns: Mapping[str, str],
    rows: Iterable[tuple[Any, Any]],
) -> Fragment:
    """The recordset of two columns, the first a "bigint" without duplicates.

    SQLite reads the members of one object eight times as fast as a list of lists.
    """
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
            params.append(json.dumps(values))
        else:
            arrays.append(f"%s::{_POSTGRESQL[kind]}[]")
            write = _element if None in values else str
            params.append(f"{{{','.join(map(write, values))}}}")
    sql = f"SELECT * FROM unnest({', '.join(arrays)}) AS j({', '.join(columns)})"
    return Fragment(sql, tuple(params))


def _element(value: Any) -> str:
    return "NULL" if value is None else str(value)
