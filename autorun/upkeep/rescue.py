"""Rescue of the runs of a lost worker: each is retried in a chunk of its own.

It is unknown which run killed the worker, so each unfinished run uses one attempt. Only a run that
was alone in its chunk can end as failed because of it. So a run that kills every worker fails after
MAX_ATTEMPTS, and its neighbours succeed.
"""

from django.db import transaction

from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.declare.base import exponential
from autorun.exceptions import LeaseLost, WorkerLost
from autorun.execution.results import Result, Tally, record
from autorun.models import Chunk, Run
from autorun.planning import batches
from autorun.planning.dependents import leave_dependents
from autorun.state.exception_text import ExceptionText, name_exception
from autorun.state.keys import key_kind
from autorun.state.leases import Lease, ends_at, new_token
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point
from autorun.state.transactions import sum_of_each, unlocked
from autorun.upkeep.announcing import hand_over_failures

logger = get_logger(__name__)


def rescue_expired(*, at_most: int) -> int:
    """Rescue the chunks whose lease has expired, the oldest first. Return how many."""
    lapsed = Chunk.objects.lapsed().order_by("expires_at")
    return sum_of_each(rescue, lapsed[:at_most], name="Rescue:")


def rescue(chunk: Chunk) -> bool:
    """Retry the unfinished runs of a lapsed chunk; False if another process does."""
    if not _take(chunk):
        return False
    crash_point("rescue.taken")
    chunk.refresh_from_db()
    unfinished = list(Run.objects.pending().filter(chunk=chunk))
    wanted = [run for run in unfinished if run.is_current]
    results = [Result.cancelled(run) for run in unfinished if not run.is_current]
    results += [_lost(chunk, run, is_alone=len(wanted) == 1) for run in wanted]
    logger.warning(
        "%s: the worker %s of chunk %s stopped answering; %d runs are retried, each alone.",
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
    hand_over_failures([each.run_id for each in results if each.status == Run.Status.FAILED])
    _leave_dependents(chunk)
    if chunk.batch_id is not None:
        batches.cancel_moved(chunk.batch_id)
    return True


def _leave_dependents(chunk: Chunk) -> None:
    """Let others plan what depends on the successes that the lost worker had recorded."""
    runner = registry.find(chunk.runner)
    dependents = nodes.dependents(runner) if runner is not None else []
    if runner is None or not dependents:
        return
    kind = key_kind(runner.get_model())
    succeeded = Run.objects.succeeded().filter(chunk=chunk)
    keys = list(succeeded.values_list(kind.column, flat=True))
    if keys:
        leave_dependents(runner, dependents, keys)


def _take(chunk: Chunk) -> bool:
    """Take the lease of a lapsed chunk; False if another process has it or is about to."""
    # If the rescuer dies half-way, another one finds its lease lapsed. A locked chunk is skipped:
    # its worker may be writing, or may have been frozen while it wrote.
    lapsed = Chunk.objects.lapsed().filter(pk=chunk.pk, token=chunk.token)
    with transaction.atomic(using=settings.DATABASE):
        if unlocked(lapsed).values_list("pk").first() is None:
            return False
        taken = lapsed.update(token=new_token(), expires_at=ends_at())
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
    return Result.failed(
        run,
        failure,
        runner,
        fingerprint=run.fingerprint,
        # Not by `get_retry_backoff()`, which is user code.
        backoff=lambda runner, attempt: exponential(runner.RETRY_BACKOFF, attempt),
    )
