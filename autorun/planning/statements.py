"""The statements of planning, over a table of candidates that may come from anywhere.

Every statement joins `d`, the candidates with their key `k` and their fingerprint `f`, to `r`,
the current runs of the node. `d` is a compiled queryset or a recordset; the rest is the same, so
the two planners differ only in where they take `d` from.

A window's bounds stand on both sides of the join: with bounds on the data's side only, 1,000,000
rows took ten times as long.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import IntegrityError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from autorun.models import Chunk, Run
from autorun.planning.selection import Selection
from autorun.state import ids
from autorun.state.clock import now_sql
from autorun.state.keys import Key, KeyKind
from autorun.state.recordsets import keyed_recordset, recordset
from autorun.state.sql import (
    Fragment,
    insert_ignoring_conflicts,
    join_in_this_order,
    table,
    update_from,
    whole_quotient,
)

#: Rows from which on a savepoint costs less than to watch for a conflict at every row.
WORTH_A_SAVEPOINT = 1_000


@dataclass(frozen=True)
class Candidates:
    """Rows to plan for one node: `source` selects their `k` and `f`, keys in (above, up_to]."""

    node_id: int
    kind: KeyKind
    source: Fragment
    above: Key | None = None
    up_to: Key | None = None


@dataclass(frozen=True)
class Counts:
    """Of some candidates: all, those without a current run, those whose run is to be redone.

    `failed` are those whose run failed for good on the same input, and `under_way` those whose run
    for it has not ended, where anybody asked. `to_redo` names those to be redone, with their
    fingerprints, where the database can name them as it counts.
    """

    candidates: int = 0
    missing: int = 0
    redo: int = 0
    failed: int = 0
    under_way: int = 0
    to_redo: Sequence[tuple[Key, str]] | None = None


@dataclass(frozen=True)
class Redo:
    """A current run that a new one is to take the place of.

    `fingerprint` is the row's; `seen` is the run's status, where the run is for that same input.
    """

    run_id: int
    key: Key
    fingerprint: str
    seen: int | None = None


def candidates_in(
    queryset: QuerySet[Any], fingerprint: Any, *, node_id: int, kind: KeyKind, **bounds: Any
) -> Candidates | None:
    """The rows of `queryset` as candidates, or None where the query cannot give any."""
    rows = queryset.order_by().annotate(_autorun_key=kind.expression(), _autorun_print=fingerprint)
    rows = rows.values_list("_autorun_key", "_autorun_print")
    try:
        sql, params = rows.query.get_compiler(using=queryset.db).as_sql()
    except EmptyResultSet:
        return None
    # Named from outside, because a queryset's own columns may come in any order and quoting.
    sql = f"WITH c(k, f) AS ({sql}) SELECT k, f FROM c"
    return Candidates(node_id, kind, Fragment(sql, tuple(params)), **bounds)


def candidates_of(
    rows: Sequence[tuple[Key, str]], *, node_id: int, kind: KeyKind, using: str
) -> Candidates:
    """Keys, of which no two are equal, and fingerprints that Python holds, as candidates."""
    columns = {"k": kind.sql_type, "f": "fingerprint"}
    tabulate = keyed_recordset if kind.is_integer else recordset
    return Candidates(node_id, kind, tabulate(connections[using], columns, rows))


def count(
    candidates: Candidates, selection: Selection, *, counts_undone: bool = False, using: str
) -> Counts:
    """How many candidates there are, and for which reason they are to be planned; one query.

    Without `counts_undone` and `selection.failed` the index alone answers it.
    """
    connection = connections[using]
    match = current_run_of_candidate(connection, candidates)
    redo, is_named = _redo_column(connection, selection)
    undone = ", ".join(
        f"COUNT(CASE WHEN r.status = {status:d} AND r.fingerprint = d.f THEN 1 END)"
        for status in (Run.Status.FAILED, Run.Status.PENDING)
    )
    sql = (
        f"SELECT COUNT(*), COUNT(*) - COUNT(r.object_id), {redo}, "
        f"{undone if counts_undone else '0, 0'} "
        f"FROM ({candidates.source.sql}) AS d "
        f"LEFT JOIN {table(Run, connection)} AS r ON {match.sql}"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [*candidates.source.params, *match.params])
        total, missing, found, failed, under_way = cursor.fetchone()
    to_redo = None
    if is_named:
        to_redo = json.loads(found or "[]")
        found = len(to_redo)
    return Counts(
        total, missing if selection.missing else 0, found, failed, under_way, to_redo=to_redo
    )


def _redo_column(connection: BaseDatabaseWrapper, selection: Selection) -> tuple[str, bool]:
    """What to select for the candidates to be redone, and whether that is a list or a number.

    They are few as a rule. Named at once, they need no second look at all rows; only MariaDB cuts
    off what it aggregates.
    """
    condition = selection.redo_condition
    if condition is None:
        return "0", False
    if connection.vendor == "mysql":
        # Where there is no run, the fingerprint need not be computed.
        case = f"CASE WHEN r.object_id IS NULL THEN NULL WHEN {condition} THEN 1 END"
        return f"COUNT({case})", False
    gather, pair = ("json_group_array", "json_array")
    if connection.vendor == "postgresql":
        gather, pair = ("json_agg", "json_build_array")
    only = f"FILTER (WHERE r.object_id IS NOT NULL AND ({condition}))"
    return f"CAST({gather}({pair}(d.k, d.f)) {only} AS TEXT)", True


def redone(
    candidates: Candidates, selection: Selection, *, limit: int | None, using: str
) -> list[Redo]:
    """The current runs to supersede, in the order of their keys."""
    condition = selection.redo_condition
    if condition is None:
        return []
    connection = connections[using]
    match = current_run_of_candidate(connection, candidates)
    key = f"r.{candidates.kind.column}"
    sql = (
        f"SELECT r.id, {key}, d.f, CASE WHEN r.fingerprint = d.f THEN r.status END "
        f"FROM ({candidates.source.sql}) AS d "
        f"{join_in_this_order(connection)} {table(Run, connection)} AS r ON {match.sql} "
        f"WHERE {condition} ORDER BY {key}"
    )
    if limit is not None:
        sql += f" LIMIT {limit:d}"
    with connection.cursor() as cursor:
        cursor.execute(sql, [*candidates.source.params, *match.params])
        return [
            Redo(run_id, row_key, getattr(found, "hex", found), seen)
            for run_id, row_key, found, seen in cursor.fetchall()
        ]


#: Where a chunk books the runs of each status that its own have taken the place of.
_BOOKED_AS = {
    Run.Status.SUCCEEDED: "superseded_succeeded",
    Run.Status.FAILED: "superseded_failed",
    Run.Status.CANCELLED: "superseded_cancelled",
}


def as_counters(superseded: Mapping[int, int]) -> dict[str, int]:
    """What `supersede` counted, as columns of the chunk of the new runs."""
    return {column: superseded.get(status, 0) for status, column in _BOOKED_AS.items()}


def supersede(redo: Sequence[Redo], *, using: str) -> dict[int, int]:
    """Make the runs no longer current; how many of each status were.

    Passed over is what has changed since it was read: a run that somebody else superseded, that a
    worker has done on the new input, or that was ignored when it was to be retried.
    """
    columns = {"run_id": "bigint", "wanted": "fingerprint", "seen": "smallint"}
    superseded = update_from(
        Run,
        "is_current = NULL",
        source=recordset(
            connections[using],
            columns,
            ((each.run_id, each.fingerprint, each.seen) for each in redo),
        ),
        match=Fragment(
            "id = s.run_id AND is_current AND (fingerprint <> s.wanted OR status = s.seen)"
        ),
        returning="status",
        using=using,
    )
    return Counter(status for (status,) in superseded)


def insert(
    candidates: Candidates,
    *,
    first_chunk: int,
    size: int,
    status: Run.Status = Run.Status.PENDING,
    limit: int | None = None,
    expected: int = 0,
    are_all_missing: bool = False,
    using: str,
) -> int:
    """Insert a run for every candidate without a current one, `size` to a chunk; how many.

    In the order of their keys: the same keys inserted in another order by another transaction
    would be a deadlock. A candidate that somebody else plans meanwhile is passed over.

    Where many are `expected`, PostgreSQL inserts them first as if nobody else were planning: to be
    prepared for a conflict at every row takes it 1.4 times as long. Where none of the candidates
    had a current run a moment ago, `are_all_missing`, none is looked for: the constraint finds
    those that were made since.
    """
    connection = connections[using]
    begin, end = insert_ignoring_conflicts(connection)
    runs = table(Run, connection)
    missing = Fragment("")
    if not are_all_missing:
        match = current_run_of_candidate(connection, candidates)
        missing = Fragment(
            f"WHERE NOT EXISTS (SELECT 1 FROM {runs} AS r WHERE {match.sql})", match.params
        )
    object_id, object_key = ("d.k", "''") if candidates.kind.is_integer else ("0", "d.k")
    ordinal = "ROW_NUMBER() OVER (ORDER BY d.k) - 1"
    finished_at = "NULL" if status == Run.Status.PENDING else now_sql(connection.vendor)
    rows = (
        f"{runs} (node_id, object_id, object_key, fingerprint, "
        "is_current, chunk_id, status, attempts, finished_at) "
        f"SELECT %s, {object_id}, {object_key}, d.f, TRUE, "
        f"%s + {whole_quotient(connection, ordinal, '%s')}, {status:d}, 0, {finished_at} "
        f"FROM ({candidates.source.sql}) AS d {missing.sql} "
        f"ORDER BY d.k {'' if limit is None else f'LIMIT {limit:d}'}"
    )
    params = [candidates.node_id, first_chunk, size, *candidates.source.params, *missing.params]
    if connection.vendor == "postgresql" and expected >= WORTH_A_SAVEPOINT:
        with suppress(IntegrityError), transaction.atomic(using=using):
            return _row_count(connection, f"INSERT INTO {rows}", params)
    return _row_count(connection, f"{begin} {rows} {end}", params)


def _row_count(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return max(int(cursor.rowcount), 0)


def insert_chunks(
    like: Chunk, *, counters: Collection[str], booked: Mapping[str, int], using: str
) -> None:
    """Insert the chunks that new runs name, of the block that begins with the id of `like`.

    Their `counters` say how many runs each was given, the first one has the numbers in `booked`,
    and in everything else they are like `like`.
    """
    connection = connections[using]
    quote = connection.ops.quote_name
    columns: dict[str, Fragment] = {}
    for field in Chunk._meta.concrete_fields:
        if field.primary_key:
            value = Fragment("chunk_id")
        elif field.name in counters:
            value = Fragment("COUNT(*)")
        elif number := booked.get(field.name):
            first = "ROW_NUMBER() OVER (ORDER BY chunk_id) = 1"
            value = Fragment(f"CASE WHEN {first} THEN {number:d} ELSE 0 END")
        elif field.has_db_default():
            continue
        else:
            prepared = field.get_db_prep_save(getattr(like, field.attname), connection)
            value = Fragment("%s", (prepared,))
        columns[quote(str(field.column))] = value
    sql = (
        f"INSERT INTO {table(Chunk, connection)} ({', '.join(columns)}) "
        f"SELECT {', '.join(value.sql for value in columns.values())} "
        f"FROM {table(Run, connection)} WHERE chunk_id >= %s AND chunk_id < %s "
        "GROUP BY chunk_id"
    )
    params = [param for value in columns.values() for param in value.params]
    with connection.cursor() as cursor:
        cursor.execute(sql, [*params, like.pk, like.pk + ids.LARGEST_BLOCK])


def current_run_of_candidate(connection: BaseDatabaseWrapper, candidates: Candidates) -> Fragment:
    """The condition that `r` is the current run of `d` for the candidates' node."""
    kind = candidates.kind
    name = "r.object_id = d.k AND r.object_key = ''"
    if not kind.is_integer:
        name = "r.object_id = 0 AND r.object_key = d.k"
    sql = f"r.node_id = %s AND {name} AND r.is_current = TRUE"
    params: list[Any] = [candidates.node_id]
    if kind.is_ordered_alike(connection):
        if candidates.above is not None:
            sql += f" AND r.{kind.column} > %s"
            params.append(candidates.above)
        if candidates.up_to is not None:
            sql += f" AND r.{kind.column} <= %s"
            params.append(candidates.up_to)
    return Fragment(sql, tuple(params))
