"""Rescue of the runs of a lost worker: each is retried in a chunk of its own.

It is unknown which run killed the worker, so each unfinished run uses one attempt. Only a run that
was alone in its chunk can end as failed because of it. So a run that kills every worker fails after
MAX_ATTEMPTS, and its neighbours succeed.

Orphans are rescued as well: pending runs whose chunk has ended or is missing. No worker creates
them. They are left when a database has forgotten commits, or when its tables were restored from
backups of different times. Each round checks the next part of all runs, in the order of their
chunks' ids, so the cost does not grow with their number.
"""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

from django.db import transaction
from django.db.models import Count, Exists, OuterRef

from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.declare.base import exponential
from autorun.dispatch.messages import queue_of
from autorun.exceptions import LeaseLost, WorkerLost
from autorun.execution.results import Result, Tally, record
from autorun.models import Batch, Chunk, Node, Run
from autorun.planning import batches
from autorun.planning.named import leave_dependents, leave_to_upkeep
from autorun.state import pulses
from autorun.state.clock import DatabaseNow, after_chunk_id, first_chunk_id_at, from_now
from autorun.state.exception_text import ExceptionText, name_exception
from autorun.state.keys import key_kind
from autorun.state.leases import Lease, ends_at, new_token
from autorun.state.logs import get_logger
from autorun.state.managers import RunQuerySet
from autorun.state.probes import crash_point
from autorun.state.transactions import repeated_on_conflict, sum_of_each, unlocked
from autorun.upkeep.announcing import hand_over_failures
from autorun.upkeep.spilled import UNKNOWN_FOR

logger = get_logger(__name__)
#: Runs that one round checks.
PART = 20_000
#: The pulse that keeps the time from which chunks are checked next.
CURSOR = "orphans"
BEGINNING = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


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
        record(lease, results, Tally.of(chunk), size=1, is_last=True, is_followed=True)
    except LeaseLost:
        return False
    crash_point("rescue.recorded")
    hand_over_failures([each.run_id for each in results if each.status == Run.Status.FAILED])
    _follow_up(chunk)
    if chunk.batch_id is not None:
        batches.cancel_moved(chunk.batch_id)
    return True


def follow_up_lapsed(*, at_most: int) -> int:
    """Leave to upkeep the rows to be planned after chunks whose worker died before it did so.

    Return how many chunks. Those of a node without a runner here wait a day for another process.
    """
    left = Chunk.objects.unfollowed()
    left.filter(expires_at__lte=from_now(-UNKNOWN_FOR)).update(expires_at=None)
    known = left.filter(node__in=list(nodes.labels_by_id())).order_by("expires_at")
    return sum_of_each(_follow_up, known[:at_most], name="Chunk")


def _follow_up(chunk: Chunk) -> bool:
    """Leave to upkeep the rows to be planned after a finished chunk.

    False if another process has done so, or if this one lacks the runners of its node.
    """
    labels = nodes.labels_by_id().get(chunk.node_id, [])
    runner = registry.find(chunk.runner if chunk.runner in labels else next(iter(labels), ""))
    if runner is None:
        return False
    kind = key_kind(runner.get_model())
    # Not those that were cancelled on request, before the chunk started or since.
    since = chunk.started_at or chunk.created_at
    ended = Run.objects.filter(chunk=chunk, finished_at__gte=since)
    ended = ended.exclude(pk__in=chunk.cancelling or ())

    def leave() -> bool:
        if not Lease(chunk, chunk.token).following().update(expires_at=None):
            return False
        statuses = dict(ended.values_list(kind.column, "status"))
        if statuses:
            leave_to_upkeep(runner, statuses)
        succeeded = [key for key, status in statuses.items() if status == Run.Status.SUCCEEDED]
        if succeeded:
            leave_dependents(chunk.node, succeeded)
        return True

    return repeated_on_conflict(leave)


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


def orphans(*, least: int = 0, below: int | None = None) -> RunQuerySet[Run]:
    """The orphans of chunks with an id from `least` on, and `below` that if it is given."""
    going_on = Chunk.objects.unfinished().filter(pk=OuterRef("chunk_id"))
    found = Run.objects.pending().filter(~Exists(going_on), chunk_id__gte=least)
    return found if below is None else found.filter(chunk_id__lt=below)


def reopen_some() -> int:
    """Let the orphans of the next part be executed. Return how many runs."""
    begin = pulses.beat_of(CURSOR) or BEGINNING
    least = first_chunk_id_at(begin)
    runs = Run.objects.filter(chunk_id__gte=least).order_by("chunk_id")
    last = runs.values_list("chunk_id", flat=True)[PART : PART + 1].first()
    end = BEGINNING if last is None else after_chunk_id(last)
    part = orphans(least=least, below=None if last is None else first_chunk_id_at(end))
    chunk_ids = list(part.order_by().values_list("chunk_id", flat=True).distinct())
    # Configurations come from user code: none is created in the transactions below.
    labels = nodes.runners_by_node().labels if chunk_ids else {}
    reopened = 0
    for pk in chunk_ids:
        reopened += repeated_on_conflict(partial(_reopen, pk, labels))
    pulses.note(CURSOR, end)
    return reopened


def _reopen(chunk_id: int, labels: Mapping[str, Sequence[str]]) -> int:
    """Let the chunk wait again. Return how many runs it has: only those that are pending."""
    chunk = Chunk.objects.select_for_update().filter(pk=chunk_id).first()
    statuses = Run.objects.filter(chunk_id=chunk_id).order_by().values_list("status")
    found = Counter(dict(statuses.annotate(Count("pk"))))
    pending = found[Run.Status.PENDING]
    if not pending or (chunk is not None and chunk.state != Chunk.State.FINISHED):
        return 0  # another process was quicker
    if chunk is None:
        return pending if _make_again(chunk_id, pending, labels) else 0
    if chunk.is_folded:  # its counts are part of its node's, and stay there
        for name, none in asdict(Tally()).items():
            setattr(chunk, name, none)
        chunk.is_folded, chunk.size = False, pending
    else:
        _uncount(chunk, pending, found)
    chunk.state, chunk.publications = Chunk.State.WAITING, 0
    chunk.finished_at = chunk.expires_at = None
    chunk.token = new_token()
    chunk.save(using=settings.DATABASE)
    if chunk.batch_id is not None:
        # What is left of a cancelled batch is cancelled, by upkeep.
        Batch.objects.cancelled().filter(pk=chunk.batch_id).update(expires_at=DatabaseNow())
    return pending


def _make_again(chunk_id: int, size: int, labels: Mapping[str, Sequence[str]]) -> bool:
    """Insert a chunk that is gone, for a runner of its runs' node; False if none is known here."""
    node_ids = Run.objects.pending().filter(chunk_id=chunk_id).values("node_id")
    node = Node.objects.filter(pk__in=node_ids).first()
    label = None if node is None else next(iter(labels.get(node.digest, ())), None)
    if label is None:
        return False
    chunk = Chunk(pk=chunk_id, node=node, runner=label, size=size, priority=Chunk.Priority.SWEEP)
    chunk.queue = queue_of(registry.get(label))
    chunk.save(force_insert=True, using=settings.DATABASE)
    return True


def _uncount(chunk: Chunk, pending: int, found: Counter[int]) -> None:
    """Remove the pending runs from the counts of ended runs."""
    excess = pending - (chunk.size - chunk.succeeded - chunk.failed - chunk.cancelled - chunk.moved)
    chunk.not_applicable = min(chunk.not_applicable, found[Run.Status.NOT_APPLICABLE])
    found[Run.Status.CANCELLED] += found[Run.Status.NOT_APPLICABLE]
    for status in (Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.CANCELLED):
        name = status.name.lower()
        counted = getattr(chunk, name)
        taken = max(0, min(excess, counted - found[status]))
        setattr(chunk, name, counted - taken)
        excess -= taken
    chunk.size += excess
