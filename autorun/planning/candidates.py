"""Candidates: the rows that a planning pass checks, as a table in SQL.

The table may be a compiled queryset or a recordset. Statements over candidates call it `d`, with a
key `k` and a fingerprint `f`; `r` is the current run of a candidate in the candidates' node.

A window's bounds stand on both sides of that join: with bounds on the data's side only, 1,000,000
rows took ten times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.models import Run
from autorun.planning.fingerprints import expression
from autorun.state.keys import Key, KeyKind, key_kind
from autorun.state.sql import Fragment, keyed_recordset, recordset, table


@dataclass(frozen=True)
class Candidates:
    """Rows to check for one node: `source` selects `k` and `f`, with keys in (above, up_to]."""

    node_id: int
    kind: KeyKind
    source: Fragment
    above: Key | None = None
    up_to: Key | None = None


def candidates_in(
    runner: Runner, queryset: QuerySet[Any], *, node_id: int, **bounds: Any
) -> Candidates | None:
    """The rows of `queryset` as candidates; None if the query can give none."""
    kind, fingerprint = key_kind(runner.get_model()), expression(runner)
    rows = queryset.order_by().annotate(_autorun_key=kind.expression(), _autorun_print=fingerprint)
    rows = rows.values_list("_autorun_key", "_autorun_print")
    try:
        sql, params = rows.query.get_compiler(using=queryset.db).as_sql()
    except EmptyResultSet:
        return None
    # Named from outside: a queryset's own columns may have any order and quoting.
    sql = f"WITH c(k, f) AS ({sql}) SELECT k, f FROM c"
    return Candidates(node_id, kind, Fragment(sql, tuple(params)), **bounds)


def candidates_of(rows: Sequence[tuple[Key, str]], *, node_id: int, kind: KeyKind) -> Candidates:
    """Keys without duplicates, and their fingerprints, as candidates."""
    columns = {"k": kind.sql_type, "f": "fingerprint"}
    tabulate = keyed_recordset if kind.is_integer else recordset
    return Candidates(node_id, kind, tabulate(connections[settings.DATABASE], columns, rows))


def select(
    candidates: Candidates, columns: str, rest: str = "", *, join: str = "LEFT JOIN"
) -> list[tuple[Any, ...]]:
    """SQL `columns` of the candidates and their current runs; `rest` follows the join."""
    connection = connections[settings.DATABASE]
    match = current_run_of_candidate(connection, candidates)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {columns} FROM ({candidates.source.sql}) AS d "
            f"{join} {table(Run, connection)} AS r ON {match.sql} {rest}",
            [*candidates.source.params, *match.params],
        )
        return list(cursor.fetchall())


def current_run_of_candidate(connection: BaseDatabaseWrapper, candidates: Candidates) -> Fragment:
    """The condition that `r` is the current run of `d`."""
    kind = candidates.kind
    sql = f"r.node_id = %s AND {row_of_candidate('r', kind)} AND r.is_current = TRUE"
    params: list[Any] = [candidates.node_id]
    for operator, bound in ((">", candidates.above), ("<=", candidates.up_to)):
        if bound is not None and kind.is_ordered_alike(connection):
            sql += f" AND r.{kind.column} {operator} %s"
            params.append(bound)
    return Fragment(sql, tuple(params))


def row_of_candidate(alias: str, kind: KeyKind) -> str:
    """The condition that the run `alias` is of the row of `d`, in whatever node."""
    if kind.is_integer:
        return f"{alias}.object_id = d.k AND {alias}.object_key = ''"
    return f"{alias}.object_id = 0 AND {alias}.object_key = d.k"
