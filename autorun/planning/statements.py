"""The statements of planning: count candidates, supersede their runs, insert runs and chunks.

`d` are the candidates and `r` their current runs, as `autorun.planning.candidates` says.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import DatabaseDefault

from autorun.conf import settings
from autorun.models import Chunk, Node, Run
from autorun.planning.candidates import (
    Candidates,
    current_run_of_candidate,
    row_of_candidate,
    select,
)
from autorun.planning.reasons import Reason, Selection, redo_condition
from autorun.state import clock, counts
from autorun.state.keys import Key
from autorun.state.managers import RETIRED
from autorun.state.sql import (
    Fragment,
    insert_ignoring_conflicts,
    join_in_this_order,
    recordset,
    table,
    update_from,
    whole_quotient,
)

#: Run `r` waits, and may start now, in a chunk of a lower priority. Looked up for each run, as the
#: set of all waiting chunks may be large; with a plus, so that it is found by its id alone. An AND
#: would look it up for candidates without a run, too.
IS_BEHIND = (
    f"CASE WHEN r.status = {Run.Status.PENDING:d} THEN (SELECT c.priority FROM {{chunks}} AS c "
    f"WHERE c.id = r.chunk_id AND +c.state = {Chunk.State.WAITING:d} "
    "AND (c.not_before IS NULL OR c.not_before <= {now})) < {priority:d} END"
)
#: From so many rows on, a savepoint costs less than handling a possible conflict at every row.
WORTH_A_SAVEPOINT = 1_000


@dataclass(frozen=True)
class Counts:
    """Numbers of candidates: all, those without a current run, those whose run is to be redone.

    On request, `failed` have no attempts left for the same input, `under_way` an unfinished run for
    it, and `behind` one that waits with a lower priority. `to_redo` are keys and fingerprints, if
    the database can list them while it counts. The node `is_held` if only a person or code that
    asks for its rows may plan them.
    """

    candidates: int = 0
    missing: int = 0
    redo: int = 0
    failed: int = 0
    under_way: int = 0
    behind: int = 0
    to_redo: Sequence[tuple[Key, str]] | None = None
    is_held: bool = False


@dataclass(frozen=True)
class Redo:
    """A current run that a new one supersedes.

    `fingerprint` is the row's; `seen` is the run's status if the run is for that same input. It
    `is_recent` if it is unfinished, or finished within the last minute.
    """

    run_id: int
    key: Key
    fingerprint: str
    seen: int | None = None
    is_recent: bool = False


def count(
    candidates: Candidates,
    selection: Selection,
    *,
    counts_undone: bool = False,
    priority: int | None = None,
) -> Counts:
    """Count candidates by the reason to plan them, in one query.

    Without `counts_undone`, `priority` and failed runs to redo the index alone answers it. With a
    `priority`, runs that wait with a lower one are counted.
    """
    redo, is_named = _redo_column(connections[settings.DATABASE].vendor, selection)
    is_behind = "0"
    if priority is not None:
        is_behind = f"COUNT(CASE WHEN r.fingerprint = d.f AND {_is_behind(priority)} THEN 1 END)"
    undone = ", ".join(
        f"COUNT(CASE WHEN r.status = {status:d} AND r.fingerprint = d.f THEN 1 END)"
        for status in (Run.Status.FAILED, Run.Status.PENDING)
    )
    columns = f"COUNT(*), COUNT(*) - COUNT(r.object_id), {redo}"
    columns += f", {undone if counts_undone else '0, 0'}, {is_behind}"
    node = table(Node, connections[settings.DATABASE])
    columns += f", (SELECT n.held_at FROM {node} AS n WHERE n.id = {candidates.node_id:d})"
    [(total, missing, found, failed, under_way, n_behind, held_at)] = select(candidates, columns)
    to_redo = None
    if is_named:
        to_redo = json.loads(found or "[]")
        found = len(to_redo)
    missing = missing if Reason.MISSING in selection else 0
    is_held = held_at is not None
    return Counts(total, missing, found, failed, under_way, n_behind, to_redo, is_held)


def _is_behind(priority: int) -> str:
    connection = connections[settings.DATABASE]
    chunks, now = table(Chunk, connection), clock.NOW_SQL[connection.vendor]
    return IS_BEHIND.format(chunks=chunks, now=now, priority=priority)


def behind(candidates: Candidates, priority: int) -> list[int]:
    """The ids of the candidates' current runs that wait with a lower priority."""
    condition = f"WHERE r.fingerprint = d.f AND {_is_behind(priority)}"
    join = join_in_this_order(connections[settings.DATABASE])
    return [run_id for (run_id,) in select(candidates, "r.id", condition, join=join)]


def _redo_column(vendor: str, selection: Selection) -> tuple[str, bool]:
    """The column that selects the candidates to be redone, and whether it is a list or a number."""
    # A list, of few as a rule, saves a second pass; but MariaDB cuts off what it aggregates.
    condition = redo_condition(selection)
    if condition is None:
        return "0", False
    if vendor == "mysql":
        # Without a run, the fingerprint need not be computed.
        case = f"CASE WHEN r.object_id IS NULL THEN NULL WHEN {condition} THEN 1 END"
        return f"COUNT({case})", False
    gather, pair = "json_group_array", "json_array"
    if vendor == "postgresql":
        gather, pair = "json_agg", "json_build_array"
    only = f"FILTER (WHERE r.object_id IS NOT NULL AND ({condition}))"
    return f"CAST({gather}({pair}(d.k, d.f)) {only} AS TEXT)", True


def redone(candidates: Candidates, selection: Selection, *, limit: int | None) -> list[Redo]:
    """The current runs to supersede, in the order of their keys."""
    condition = redo_condition(selection)
    if condition is None:
        return []
    connection = connections[settings.DATABASE]
    key = f"r.{candidates.kind.column}"
    found = select(
        candidates,
        f"r.id, {key}, d.f, CASE WHEN r.fingerprint = d.f THEN r.status END, "
        f"r.finished_at IS NULL OR r.finished_at > {clock.MINUTE_AGO_SQL[connection.vendor]}",
        f"WHERE {condition} ORDER BY {key} {_limited(limit)}",
        join=join_in_this_order(connection),
    )
    return [
        Redo(run_id, row_key, getattr(fingerprint, "hex", fingerprint), seen, bool(is_recent))
        for run_id, row_key, fingerprint, seen, is_recent in found
    ]


def supersede(redo: Sequence[Redo]) -> dict[str, int]:
    """Supersede the runs. Return how many, by the columns of the chunk that counts them."""
    # Runs that another process has superseded, finished or ignored since they were read are
    # skipped.
    columns = {"run_id": "bigint", "wanted": "fingerprint", "seen": "smallint"}
    rows = ((each.run_id, each.fingerprint, each.seen) for each in redo)
    only = "is_current AND (fingerprint <> s.wanted OR status = s.seen)"
    changed = update_from(
        Run,
        "is_current = NULL",
        source=recordset(connections[settings.DATABASE], columns, rows),
        key="run_id",
        only=Fragment(only),
        returning="status",
    )
    return counts.superseded(status for (status,) in changed)


def insert(
    candidates: Candidates,
    *,
    first_chunk: int,
    size: int,
    status: Run.Status = Run.Status.PENDING,
    limit: int | None = None,
    expected: int = 0,
    are_all_missing: bool = False,
    outputs_from: Sequence[int] = (),
) -> int:
    """Insert a run for every candidate without a current one, `size` to a chunk. Return how many.

    In the order of their keys, so that two transactions cannot deadlock; a candidate that another
    process plans meanwhile is skipped. If many are `expected`, PostgreSQL first inserts them
    without regard to conflicts: handling these at every row takes 1.4 times as long. If
    `are_all_missing`, none is looked up, as the constraint finds runs made since. The outputs are
    those of the row's last success in the first of the nodes `outputs_from` that has one.
    """
    connection = connections[settings.DATABASE]
    begin, end = insert_ignoring_conflicts(connection)
    missing = Fragment("")
    if not are_all_missing:
        match = current_run_of_candidate(connection, candidates)
        runs = table(Run, connection)
        missing = Fragment(
            f"WHERE NOT EXISTS (SELECT 1 FROM {runs} AS r WHERE {match.sql})", match.params
        )
    rows = _rows_to_insert(connection, candidates, status, outputs_from)
    sql = f"{rows.sql} {missing.sql} ORDER BY d.k {_limited(limit)}"
    params = [candidates.node_id, first_chunk, size, *rows.params, *missing.params]
    if connection.vendor == "postgresql" and expected >= WORTH_A_SAVEPOINT:
        with suppress(IntegrityError), transaction.atomic(using=settings.DATABASE):
            return _row_count(connection, f"INSERT INTO {sql}", params)
    return _row_count(connection, f"{begin} {sql} {end}", params)


def _rows_to_insert(
    connection: BaseDatabaseWrapper,
    candidates: Candidates,
    status: Run.Status,
    outputs_from: Sequence[int],
) -> Fragment:
    """Runs for the candidates; takes the node, the first chunk and the chunks' size as well."""
    object_id, object_key = ("d.k", "''") if candidates.kind.is_integer else ("0", "d.k")
    ordinal = "ROW_NUMBER() OVER (ORDER BY d.k) - 1"
    finished_at = "NULL" if status == Run.Status.PENDING else clock.NOW_SQL[connection.vendor]
    outputs = outputs_column = ""
    if outputs_from:
        outputs_column = ", outputs"
        outputs = f", {_last_outputs(connection, candidates, outputs_from)}"
    return Fragment(
        f"{table(Run, connection)} (node_id, object_id, object_key, fingerprint, "
        f"is_current, chunk_id, status, attempts, finished_at{outputs_column}) "
        f"SELECT %s, {object_id}, {object_key}, d.f, TRUE, "
        f"%s + {whole_quotient(connection, ordinal, '%s')}, {status:d}, 0, {finished_at}{outputs} "
        f"FROM ({candidates.source.sql}) AS d",
        candidates.source.params,
    )


def _last_outputs(
    connection: BaseDatabaseWrapper, candidates: Candidates, node_ids: Sequence[int]
) -> str:
    """The outputs of the candidate's last success in the first of the nodes that has one."""
    places = " ".join(f"WHEN {pk:d} THEN {place}" for place, pk in enumerate(node_ids))
    named = row_of_candidate("o", candidates.kind)
    return (
        f"(SELECT o.outputs FROM {table(Run, connection)} AS o "
        f"WHERE o.node_id IN ({', '.join(map(str, node_ids))}) AND {named} "
        f"AND o.status = {Run.Status.SUCCEEDED:d} AND o.fingerprint <> '{RETIRED}' "
        f"ORDER BY CASE o.node_id {places} END, o.id DESC LIMIT 1)"
    )


def _limited(limit: int | None) -> str:
    return "" if limit is None else f"LIMIT {limit:d}"


def _row_count(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return max(int(cursor.rowcount), 0)


def insert_chunks(like: Chunk, *, counters: Collection[str], booked: Mapping[str, int]) -> None:
    """Insert the chunks that new runs name, in the block of ids that begins with that of `like`.

    Each is a copy of `like` that counts its runs in `counters`; the first also has those `booked`.
    """
    connection = connections[settings.DATABASE]
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
        elif isinstance(getattr(like, field.attname), DatabaseDefault):
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
        cursor.execute(sql, [*params, like.pk, like.pk + clock.LARGEST_BLOCK])
