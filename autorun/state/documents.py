"""SQL and functions that give equal values one text: columns, JSON documents, sets of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from django.db import connections, models
from django.db.backends.signals import connection_created

#: A function of SQL on SQLite: the text of what a JSON list of keys leads to in a document.
NORMALIZED = "AUTORUN_JSON"
#: An aggregate of SQL on SQLite: the number of texts, and the sum of 64 bits of a digest of each.
SET_TEXT = "AUTORUN_SET"
#: A function of SQL on SQLite: whether bytes are a text that Python can read.
READABLE = "AUTORUN_READABLE"
_TRIMMED = "TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM CAST($ AS CHAR)))"
_EPOCH = "EXTRACT(EPOCH FROM $)::text"
#: Fifteen digits, written by "numeric", if they are exact; a float's own text has as many as the
#: session says.
_FLOAT = (
    "CASE WHEN $::numeric::float8 = $ THEN TRIM_SCALE($::numeric)::text "
    "ELSE ENCODE(float8send($), 'hex') END"
)
#: SQL for a value `$` of each type of column whose text would depend on something else.
_POSTGRESQL = {
    "bytea": "ENCODE($, 'hex')",
    "date": "(TO_JSONB($) #>> '{}')",
    "double precision": _FLOAT,
    "float4": _FLOAT,
    "float8": _FLOAT,
    "interval": _EPOCH,
    "numeric": "TRIM_SCALE($)::text",
    "real": _FLOAT,
    "timestamp": _EPOCH,
    "timestamp with time zone": _EPOCH,
    "timestamp without time zone": _EPOCH,
    "timestamptz": _EPOCH,
}
_RANGES = {
    "daterange": "date",
    "numrange": "numeric",
    "tsrange": "timestamp",
    "tstzrange": "timestamptz",
}
_SPATIAL = ("geometry", "point", "linestring", "polygon")


def connect() -> None:
    """Give each connection to SQLite the functions NORMALIZED, SET_TEXT and READABLE."""
    connection_created.connect(_add_function, dispatch_uid=__name__)


def found_at(keys: Iterable[str], document: Any) -> Any:
    """The value that `keys` lead to, a number being an index of a list; None without one."""
    for key in keys:
        is_list = isinstance(document, list)
        try:
            document = document[int(key)] if is_list else dict.__getitem__(document, key)
        except (LookupError, TypeError, ValueError):
            return None
    return document


def _add_function(connection: Any, **kwargs: Any) -> None:
    if connection.vendor == "sqlite":
        connection.connection.create_function(NORMALIZED, 2, _normalized, deterministic=True)
        connection.connection.create_aggregate(SET_TEXT, 1, _SetText)
        connection.connection.create_function(READABLE, 1, _is_readable, deterministic=True)


class _SetText:
    def __init__(self) -> None:
        self.number = self.total = 0

    def step(self, text: str) -> None:
        self.number += 1
        digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
        self.total += int.from_bytes(digest[:8], "big")

    def finalize(self) -> str:
        return f"{self.number}:{self.total}."


def _normalized(text: str | None, keys: str) -> str | None:
    if text is None:
        return None
    found = found_at(json.loads(keys), json.loads(text))
    # Without keys a null is a document; SQL's NULL is the lack of one.
    return None if found is None and keys != "[]" else json.dumps(found, sort_keys=True)


def _is_readable(text: bytes | None) -> bool:
    try:
        (text or b"").decode()  # SQLite also asks about what a column is compared with
    except UnicodeDecodeError:
        return False
    return True


@cache
def text_of(field: models.Field[Any, Any], using: str) -> str:
    """SQL for the text of a value `$` of `field`; on SQLite, of the keys `[]` of a document."""
    # It depends neither on how a session writes times, numbers and bytes, nor on what AlterField
    # may change without a change of the value: more decimal places, a longer or larger type.
    connection = connections[using]
    column = str(field.db_type(connection) or "").lower()
    if connection.vendor == "postgresql":
        return _on_postgresql(column)
    kind = column.partition("(")[0]
    if connection.vendor == "mysql":
        return _on_mariadb(field, kind, connection)
    if isinstance(field, models.JSONField):
        return f"{NORMALIZED}($, '[]')"
    if kind == "real":
        return "QUOTE($)"  # a cast keeps 15 digits
    text = "CAST($ AS TEXT)"
    if field.get_internal_type() in connection.data_types and kind != "blob":
        return text
    return f"CASE TYPEOF($) WHEN 'blob' THEN HEX($) ELSE {text} END"


def _on_mariadb(field: models.Field[Any, Any], kind: str, connection: Any) -> str:
    text = "CAST($ AS CHAR)"
    if isinstance(field, models.JSONField):
        can_normalize = connection.mysql_is_mariadb and connection.mysql_version >= (10, 7)
        return f"COALESCE(JSON_NORMALIZE($), {text})" if can_normalize else text
    if "blob" in kind or "binary" in kind or kind.endswith(_SPATIAL):
        return "HEX($)"
    if kind == "char":
        return f"RTRIM({text})"  # padded or not, as sql_mode says
    if kind in ("numeric", "decimal"):
        return f"IF(LOCATE('.', {text}), {_TRIMMED}, {text})"
    if kind == "timestamp":
        return "CAST(UNIX_TIMESTAMP($) AS CHAR)"
    return text


def _on_postgresql(column: str) -> str:
    element, bracket, _ = column.partition("[")
    name, _, rest = element.partition("(")
    kind = name + rest.partition(")")[2]  # timestamp(3) with time zone
    text = _POSTGRESQL.get(kind)
    if bound := _RANGES.get(kind.replace("multirange", "range")):
        text = _range(_POSTGRESQL[bound])
        if "multi" in kind:  # whose ranges are in order
            text = f"ARRAY(SELECT {text.replace('$', 'r')} FROM UNNEST($) AS m(r))"
            text = f"CASE WHEN $ IS NOT NULL THEN {text}::text END"
    if text is None:
        return "($)::text"
    if not bracket:
        return text
    items = f"ARRAY(SELECT {text.replace('$', 'e')} FROM UNNEST($) WITH ORDINALITY AS u(e, n) "
    shape = "CASE WHEN ARRAY_NDIMS($) > 1 THEN ARRAY_DIMS($) ELSE '' END"
    return f"CASE WHEN $ IS NOT NULL THEN {shape} || {items} ORDER BY n)::text END"


def _range(bound: str) -> str:
    lower, upper = (bound.replace("$", f"{end}($)") for end in ("LOWER", "UPPER"))
    return (
        "CASE ISEMPTY($) WHEN TRUE THEN 'empty' WHEN FALSE THEN "
        f"CASE WHEN LOWER_INC($) THEN '[' ELSE '(' END || COALESCE({lower}, '') || ',' || "
        f"COALESCE({upper}, '') || CASE WHEN UPPER_INC($) THEN ']' ELSE ')' END END"
    )
