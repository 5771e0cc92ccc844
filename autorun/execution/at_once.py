"""A lone row, planned and worked off by the process that was told of it.

To wait in a chunk, be claimed, sent and fetched is what keeps many runs within their limits. A
single row that was just saved has nothing to gain by it: where no limit is in the way it is started
as it is planned, with six statements instead of sixteen, and without a second message.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from django.db import DatabaseError, connections, transaction

from autorun.conf import settings
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.execution.execute import work_off
from autorun.execution.work import Work
from autorun.models import Chunk, Node, Run
from autorun.planning.named import candidates_named, plan_for_all
from autorun.planning.standing import Standing, standing_of
from autorun.planning.statements import Redo, as_counters, supersede
from autorun.state import tracing
from autorun.state.clock import DatabaseNow
from autorun.state.crash_points import crash_point
from autorun.state.ids import new_chunk_id
from autorun.state.keys import key_kind
from autorun.state.leases import Lease, ends_at, worker_name
from autorun.state.transactions import is_conflict

logger = logging.getLogger(__name__)


def plan_and_work_off(runners: Sequence[Runner], keys: Collection[Any]) -> None:
    """Plan rows that were just saved, and work off a lone one at once where nothing forbids it.

    Of several runners the last one's, so that the others need not wait for its body.
    """
    if len(keys) != 1 or not runners or not _may_start_at_once(runners[-1]):
        plan_for_all(runners, keys)
        return
    *others, last = runners
    plan_for_all(others, keys)
    try:
        work, is_settled = _begin(last, keys)
    except Exception:
        logger.debug("%s: a row goes the long way.", last.label, exc_info=True)
        work, is_settled = None, False
    if work is not None:
        work_off(work)
    elif not is_settled:
        plan_for_all([last], keys)


def _may_start_at_once(runner: Runner) -> bool:
    """Whether none of the runner's options asks for what only a message of its own can give."""
    is_plain = runner.QUEUE is None and runner.PRIORITY is None and not runner.MAX_PARALLEL
    return is_plain and not connections[settings.DATABASE].in_atomic_block


def _begin(runner: Runner, keys: Collection[Any]) -> tuple[Work | None, bool]:
    """The started run of the row, if it is pending, and whether the row needs nothing more."""
    with tracing.span("autorun.plan") as span:
        work, is_settled = _plan_and_start(runner, keys)
        # A row that goes the long way is a candidate there.
        span.note(runner=runner.label, candidates=int(is_settled), planned=int(work is not None))
    return work, is_settled


def _plan_and_start(runner: Runner, keys: Collection[Any]) -> tuple[Work | None, bool]:
    node = node_of(runner)
    candidates = candidates_named(runner, keys, node_id=node.pk)
    if candidates is None:
        return None, False
    standing = standing_of(candidates, using=settings.DATABASE)
    if standing is None or standing.is_done:
        return None, True
    if not standing.is_free:
        return None, False
    try:
        with transaction.atomic(using=settings.DATABASE):
            chunk, run = _record(runner, node, standing)
            crash_point("plan.booked")
    except DatabaseError as error:
        if not is_conflict(error):
            raise
        return None, False  # somebody else has planned the row meanwhile
    crash_point("plan.committed")
    crash_point("start.leased")
    # The row itself is loaded only now. Had it been loaded before, a change that was planned
    # between the two would have found nothing pending, and this run would miss it.
    work = Work(Lease(chunk, chunk.token), runner, runner.get_analysis(), runs=[run])
    return work, True


def _record(runner: Runner, node: Node, standing: Standing) -> tuple[Chunk, Run]:
    """A run in a chunk of its own that is started already."""
    booked = {}
    if standing.run_id is not None:
        redo = Redo(standing.run_id, standing.key, standing.fingerprint)
        superseded = supersede([redo], using=settings.DATABASE)
        booked = as_counters(superseded)
        crash_point("plan.superseded")
    chunk = Chunk(
        pk=new_chunk_id(),
        node=node,
        runner=runner.label,
        state=Chunk.State.RUNNING,
        priority=Chunk.Priority.LIVE,
        queue=settings.QUEUE or "",
        size=1,
        token=1,
        started_at=DatabaseNow(),
        expires_at=ends_at(),
        worker=worker_name(),
        **booked,
    )
    kind = key_kind(runner.get_model())
    run = Run(node=node, chunk=chunk, fingerprint=standing.fingerprint, **kind.lookup(standing.key))
    run.save(force_insert=True, using=settings.DATABASE)
    crash_point("plan.inserted")
    chunk.save(force_insert=True, using=settings.DATABASE)
    crash_point("plan.chunked")
    run.has_older = False  # type: ignore[attr-defined]  # what a chunk's own query says
    return chunk, run
