"""The text of a column in SQL: different for all different values, and the same in all sessions.

It depends neither on how a session writes times, numbers and bytes, nor on what `AlterField` may
change without a change of the value: more decimal places, a longer or larger type.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from django.db import connections, models

from autorun.state.documents import NORMALIZED

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


@cache
def text_of(field: models.Field[Any, Any], using: str) -> str:
    """SQL for the text of a value `$` of `field`; on SQLite, of the keys `[]` of a document."""
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
