"""Runs whose worker has gone: they go out again, each alone.

Which run of the chunk killed the worker cannot be known, so all that were unfinished use up an
attempt; but only one that was alone can fail for good by it. A run that kills every worker ends
as failed after MAX_ATTEMPTS, and its neighbours succeed.
"""

from __future__ import annotations

import logging

from django.db import connections, transaction
from django.db.models import F

from autorun import signals
from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.exceptions import LeaseLost, WorkerLost
from autorun.execution.results import Result, Tally, endings, record
from autorun.models import Chunk, Run
from autorun.planning.named import plan_or_write_down
from autorun.state.crash_points import crash_point
from autorun.state.encoding import ExceptionText, name_exception
from autorun.state.keys import key_kind
from autorun.state.leases import Lease, ends_at

logger = logging.getLogger(__name__)


def rescue_expired(*, at_most: int) -> int:
    """Rescue chunks whose lease has run out; how many."""
    lapsed = Chunk.objects.lapsed().order_by("expires_at")
    return sum(rescue(chunk) for chunk in list(lapsed[:at_most]))


def rescue(chunk: Chunk) -> bool:
    """Send the unfinished runs of an expired chunk out again; False where somebody else has."""
    if not _take(chunk):
        return False
    crash_point("rescue.taken")
    chunk.refresh_from_db()
    unfinished = list(Run.objects.pending().filter(chunk=chunk))
    wanted = [run for run in unfinished if run.is_current]
    results = [Result.cancelled(run) for run in unfinished if not run.is_current]
    results += [_lost(chunk, run, is_alone=len(wanted) == 1) for run in wanted]
    logger.warning(
        "%s: the worker %s of chunk %s stopped answering; %d runs go out again, each alone.",
        chunk.runner,
        chunk.worker,
        chunk.pk,
        len(wanted),
    )
    try:
        lease = Lease(chunk, chunk.token, worker=chunk.worker)
        record(lease, results, Tally.of(chunk), size=1, is_last=True)
    except LeaseLost:
        return False
    crash_point("rescue.recorded")
    signals.announce_runs(chunk.runner, endings(results))
    _plan_dependents(chunk)
    return True


def _plan_dependents(chunk: Chunk) -> None:
    """What the worker would have had planned, for those of its runs that it recorded."""
    runner = registry.find(chunk.runner)
    dependents = nodes.dependents(runner) if runner is not None else []
    if runner is None or not dependents:
        return
    kind = key_kind(runner.get_model())
    succeeded = Run.objects.succeeded().filter(chunk=chunk)
    keys = list(succeeded.values_list(kind.column, flat=True))
    if keys:
        plan_or_write_down(dependents, keys, priority=Chunk.Priority(chunk.priority))


def _take(chunk: Chunk) -> bool:
    """Have the lease of an expired chunk; whether nobody else has or is about to.

    The rescuer takes it itself: should it die half-way, another one finds it expired. A chunk that
    is locked is passed over. Its worker may be writing, or may have been frozen while it wrote.
    """
    features = connections[settings.DATABASE].features
    lapsed = Chunk.objects.lapsed().filter(pk=chunk.pk, token=chunk.token)
    with transaction.atomic(using=settings.DATABASE):
        unlocked = lapsed.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
        if unlocked.values_list("pk").first() is None:
            return False
        taken = lapsed.update(token=F("token") + 1, expires_at=ends_at())
    return bool(taken)


def _lost(chunk: Chunk, run: Run, *, is_alone: bool) -> Result:
    """The run as failed with WorkerLost; without another attempt only if it was alone."""
    failure = ExceptionText(
        exception_class=name_exception(WorkerLost),
        message=(
            f"The worker {chunk.worker} stopped answering before the run was done: it was "
            "killed, ran out of memory, or lost its machine or its network."
        ),
        traceback="",
    )
    # During a rolling deployment this process may not know the runner, nor its MAX_ATTEMPTS.
    runner = registry.find(chunk.runner) if is_alone else None
    return Result.failed(run, failure, runner, fingerprint=run.fingerprint)
