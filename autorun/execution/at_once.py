"""A single saved row, planned and started by the process that receives its message.

Waiting in a chunk, being claimed, sent and fetched keeps many runs within their limits. A single
row that was just saved gains nothing by it: if no limit is in the way, its run is started as it is
planned, with a third of the statements and without a second message.
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, InterfaceError, connections, transaction

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.nodes import node_of
from autorun.execution.work import Work
from autorun.models import Chunk, Node, Pulse, Run
from autorun.planning.candidates import (
    Candidates,
    candidates_in,
    current_run_of_candidate,
    row_of_candidate,
)
from autorun.planning.damping import FREE
from autorun.planning.named import plan_for_all
from autorun.planning.rows import eligible_named, planned_by_database, primary_keys
from autorun.planning.statements import IS_BEHIND, Redo, supersede
from autorun.planning.windows import whole
from autorun.state import draining, probes
from autorun.state.clock import MINUTE_AGO_SQL, NOW_SQL, DatabaseNow
from autorun.state.counts import superseded
from autorun.state.keys import Key, key_kind
from autorun.state.leases import Lease, ends_at, worker_name
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point
from autorun.state.sql import Slot, insert_both, prepared_insert, table
from autorun.state.transactions import is_conflict, repeated_while_away, unflushed

logger = get_logger(__name__)

#: The columns of a chunk that count the run that its own supersedes.
BOOKED = tuple(superseded(Run.Status))
_STATUSES = (Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.NOT_APPLICABLE)
#: The statuses of runs that have been executed, for SQL.
_EXECUTED = ", ".join(f"{status:d}" for status in _STATUSES)


@dataclass(frozen=True)
class _Eligible:
    """An eligible row with its fingerprint, and its current run if it has one.

    `is_free`: a new run can start, as the row has no pending run and need not be asked about
    damping, its node is neither paused nor held (up), and the worker is not drained.
    """

    key: Key
    fingerprint: str
    run_id: int | None
    is_done: bool
    is_free: bool


def plan_or_start(runners: Sequence[Runner], keys: Collection[Any]) -> Work | None:
    """Plan rows that were just saved; start the run of a single one, for the caller to execute.

    If the model has several runners, only the last one's run is started, so that the others do not
    wait for its body.
    """
    *others, last = runners
    # These options need a message of their own for each run.
    is_limited = last.MAX_PARALLEL or last.LIMIT is not None
    is_plain = last.QUEUE is None and last.PRIORITY is None and not is_limited
    is_plain = is_plain and last.CANDIDATE is None
    is_in_transaction = connections[settings.DATABASE].in_atomic_block
    if len(keys) != 1 or not is_plain or is_in_transaction:
        plan_for_all(runners, keys)
        return None
    if others:
        plan_for_all(others, keys)
    try:
        work, is_settled = _start(last, keys)
    except Exception:
        logger.debug("%s: a saved row is planned the usual way.", last.label, exc_info=True)
        work, is_settled = None, False
    if work is None and not is_settled:
        plan_for_all([last], keys)
    return work


def _start(runner: Runner, keys: Collection[Any]) -> tuple[Work | None, bool]:
    """Start the row's run if the row is pending.

    Return the run, and whether the row is dealt with.
    """
    analysis = runner.get_analysis()
    if not analysis.is_executable:
        return None, False
    with probes.span("autorun.plan") as span:
        node = node_of(runner)
        candidates = _candidates(runner, keys, node_id=node.pk)
        row = None if candidates is None else _eligible_among(candidates)
        is_settled = candidates is not None and (row is None or row.is_done)
        run = None
        if row is not None and row.is_free and not row.is_done:
            run = _record(runner, node, row)
        # A row that is planned the usual way is a candidate there.
        span.note(
            runner=runner.label,
            candidates=int(is_settled or run is not None),
            planned=int(run is not None),
        )
    if run is None:
        return None, is_settled
    crash_point("start.leased")
    # The row is loaded only when the work is executed. If it were loaded before, a change that was
    # planned in between would have found nothing pending, and this run would miss it.
    lease = Lease(run.chunk, run.chunk.token)
    return Work(lease, runner, analysis, runs=[run]), True


def _candidates(runner: Runner, keys: Collection[Any], *, node_id: int) -> Candidates | None:
    """The row as a candidate, if it is eligible; None if its input could not be prepared."""
    rows = eligible_named(runner, primary_keys(runner, keys))
    if planned_by_database(runner):
        return candidates_in(runner, rows, node_id=node_id)
    (window,) = whole(runner, rows, node_id=node_id)
    return None if window.unprepared else window.candidates


def _eligible_among(candidates: Candidates) -> _Eligible | None:
    """The row that is the only candidate; None if there is none."""
    connection = connections[settings.DATABASE]
    current = current_run_of_candidate(connection, candidates)
    name, runs = row_of_candidate("p", candidates.kind), table(Run, connection)
    now, chunks = NOW_SQL[connection.vendor], table(Chunk, connection)
    is_behind = IS_BEHIND.format(now=now, chunks=chunks, priority=Chunk.Priority.LIVE)
    sql = (
        # A run that waits behind others is not done: planning the usual way brings it forward.
        f"SELECT d.k, d.f, r.id, CASE WHEN {is_behind} THEN FALSE ELSE r.fingerprint = d.f END, "
        # A run that was executed has waited for earlier ones of its row: these are read only if the
        # row has changed soon after it, and planning might have it wait. There may be very many.
        f"CASE WHEN r.status = {Run.Status.PENDING:d} THEN TRUE "
        f"WHEN r.attempts > 0 AND r.status IN ({_EXECUTED}) THEN "
        f"CASE WHEN r.fingerprint <> d.f AND r.finished_at > {MINUTE_AGO_SQL[connection.vendor]} "
        f"THEN (SELECT COUNT(*) FROM {runs} AS p "
        f"WHERE p.node_id = %s AND {name} AND p.attempts > 0) >= {FREE} ELSE FALSE END "
        f"ELSE EXISTS (SELECT 1 FROM {runs} AS p "
        f"WHERE p.node_id = %s AND {name} AND p.status = {Run.Status.PENDING:d}) END, "
        f"EXISTS (SELECT 1 FROM {table(Node, connection)} AS n "
        "WHERE n.id = %s AND (n.paused_at IS NOT NULL OR n.held_at IS NOT NULL)), "
        f"EXISTS (SELECT 1 FROM {chunks} AS c WHERE c.node_id = %s "
        f"AND c.state = {Chunk.State.PARKED:d} AND c.not_before IS NOT NULL), "
        f"EXISTS (SELECT 1 FROM {table(Pulse, connection)} AS u WHERE u.name = %s) "
        f"FROM ({candidates.source.sql}) AS d "
        f"LEFT JOIN {runs} AS r ON {current.sql}"
    )
    obstacles = [*[candidates.node_id] * 4, draining.own]
    params = [*obstacles, *candidates.source.params, *current.params]
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        found = cursor.fetchone()
    if found is None:
        return None
    key, fingerprint, run_id, is_done, *obstacles = found
    seen = getattr(fingerprint, "hex", fingerprint)
    return _Eligible(key, seen, run_id, is_done=bool(is_done), is_free=not any(obstacles))


@prepared_insert
def _insert_chunk() -> Chunk:
    return Chunk(
        **{name: Slot(name) for name in ("id", "node_id", "runner", "queue", "worker", *BOOKED)},
        state=Chunk.State.RUNNING,
        priority=Chunk.Priority.LIVE,
        size=1,
        token=1,
        started_at=DatabaseNow(),
        expires_at=ends_at(),
    )


@prepared_insert
def _insert_run() -> Run:
    names = ("node_id", "chunk_id", "fingerprint", "object_id", "object_key")
    return Run(**{name: Slot(name) for name in names})


def _record(runner: Runner, node: Node, row: _Eligible) -> Run | None:
    """Plan the run in a started chunk of its own; None if another process planned the row first."""
    chunk = Chunk(
        node=node,
        runner=runner.label,
        state=Chunk.State.RUNNING,
        priority=Chunk.Priority.LIVE,
        size=1,
        token=1,
        queue=settings.QUEUE or "",
        worker=worker_name(),
    )
    key = key_kind(runner.get_model()).lookup(row.key)
    run = Run(node=node, chunk=chunk, fingerprint=row.fingerprint, **key)
    try:
        using = settings.DATABASE
        own = transaction.atomic(using=using) if row.run_id else nullcontext()
        with unflushed(connections[using]), own:
            if row.run_id is not None:
                redo = Redo(row.run_id, row.key, row.fingerprint)
                vars(chunk).update(supersede([redo]))
                crash_point("plan.superseded")
            run.pk = insert_both(_insert_run(**vars(run)), _insert_chunk(**vars(chunk)))
            crash_point("plan.inserted")
            crash_point("plan.chunked")
            crash_point("plan.booked")
    except (DatabaseError, InterfaceError) as error:
        if is_conflict(error):
            return None
        # If only the answer was lost, the run has started, and no other worker would execute it.
        started = Run.objects.filter(chunk_id=chunk.pk).values_list("pk", flat=True)
        run.pk = repeated_while_away(started.first)
        if run.pk is None:
            raise
    crash_point("plan.committed")
    run.has_older = False  # type: ignore[attr-defined]  # what a chunk's own query says
    return run
