"""Execute the chunk that a message names."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import mean

from celery.exceptions import SoftTimeLimitExceeded

from autorun import analysis as analyses
from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.interruption import Interrupted, Termination
from autorun.dispatch.holding import pause_after
from autorun.dispatch.messages import longest
from autorun.dispatch.releasing import release_after, send
from autorun.dispatch.sizes import LARGEST, TARGET_SECONDS
from autorun.exceptions import LeaseLost, NotRegistered
from autorun.execution.assignments import load_runs
from autorun.execution.giving_way import are_rows_waiting
from autorun.execution.keeper import Keeper
from autorun.execution.results import Result, Tally, record
from autorun.execution.work import Work
from autorun.models import Chunk, Node, Run
from autorun.planning import batches
from autorun.planning.named import plan_dependents, plan_for_all
from autorun.planning.retiring import retire_missing
from autorun.state import draining, probes
from autorun.state.exception_text import one_line
from autorun.state.leases import (
    give_back,
    kept,
    next_urgent,
    park,
    queued,
    requeue,
    set_aside,
    start,
)
from autorun.state.logs import get_logger
from autorun.state.origins import WRITTEN
from autorun.state.probes import crash_point
from autorun.state.transactions import is_passing, leave_connections, repeated_while_away

logger = get_logger(__name__)

#: Urgent chunks that a worker executes before the one its message names.
MOST_URGENT = 10
#: A worker that lacks the runner parks a chunk whose message was sent this often.
SENDINGS = 3
#: The weight of the latest chunk in a node's run time, and the relative change worth a write.
NEWEST_WEIGHT = 0.3
WORTH_WRITING = 0.1
#: Shorter run times do not make chunks larger.
SHORTEST = TARGET_SECONDS / LARGEST


def execute(chunk_id: int) -> None:
    """Execute the chunk, and more urgent ones before it, unless another worker has started them.

    Celery ends the process after the message's time limit, so a chunk that may take longer than the
    time left is not started: an urgent one has its own message, and this one is sent again, as it
    is if saved rows wait behind it. A drained worker starts none.
    """
    chunk = queued(chunk_id)
    if chunk is None:
        logger.debug("Chunk %s is not queued: its message is late or repeated.", chunk_id)
        return
    seconds = longest(chunk)
    deadline = math.inf if seconds is None else time.monotonic() + seconds + settings.LEASE
    if chunk.is_refused:
        draining.begin()
    skipped: list[int] = []  # a locked one stays queued
    for _ in range(MOST_URGENT if chunk.is_preceded else 0):
        urgent = None if draining.has_begun() else next_urgent(chunk, but=skipped)
        if urgent is None:
            break
        skipped.append(urgent.pk)
        if not registry.can_run(urgent.runner, urgent.node.title, urgent.node.version):
            continue  # its own message reaches another worker
        if not _ends_before(deadline, urgent):
            break
        _execute_one(urgent)
    if draining.has_begun():
        if give_back(chunk):
            logger.info("%s: gave chunk %s back: the worker is drained.", chunk.runner, chunk.pk)
    elif _ends_before(deadline, chunk) and not are_rows_waiting(chunk):
        _execute_one(chunk)
    else:
        send([chunk])


def _ends_before(deadline: float, chunk: Chunk) -> bool:
    seconds = longest(chunk)
    return time.monotonic() + (math.inf if seconds is None else seconds) <= deadline


def _execute_one(chunk: Chunk) -> None:
    try:
        runner = registry.get(chunk.runner)
        analysis = analyses.get_executable(chunk.node.title, chunk.node.version)
    except NotRegistered as missing:
        _requeue_or_park(chunk, str(missing))
        return
    lease = start(chunk, read_runs=load_runs)
    if lease is None:
        return
    crash_point("start.leased")
    work_off(Work(lease, runner, analysis, runs=lease.runs))


def _requeue_or_park(chunk: Chunk, reason: str) -> None:
    """Leave the chunk to another worker; park it if that has been tried often enough.

    During a rollout, some workers have the new version and some do not.
    """
    if chunk.publications < SENDINGS:
        if requeue(chunk):
            logger.info("%s: requeued chunk %s: %s", chunk.runner, chunk.pk, reason)
            send([chunk])
    elif park(chunk, reason):
        logger.error("%s: parked chunk %s: %s", chunk.runner, chunk.pk, reason)


def work_off(work: Work) -> None:
    """Execute the runs of a started chunk, and plan, measure and release what follows."""
    runner, chunk = work.runner, work.lease.chunk
    with probes.span("autorun.chunk") as span, Termination() as termination:
        span.note(runner=runner.label, chunk=chunk.pk, batch=chunk.batch_id or 0, size=chunk.size)
        try:
            with Keeper(work, follow_up=lambda: _follow_up(work)):
                work.assign()
                crash_point("start.assigned")
                tally = work.perform(termination)
        except LeaseLost as lost:
            logger.warning("%s: %s Results not yet recorded are lost.", runner.label, lost)
            # A failover or a backup may have lost the runs, too.
            work.unexpected = [] if work.body.stop else work.keys
        except Interrupted:
            logger.info("%s: returned chunk %s: the worker is stopping.", runner.label, chunk.pk)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            # Nothing can be recorded, which is no row's fault. A death would use up attempts.
            if is_passing(error) or not _set_aside(work, error):
                raise
        else:
            crash_point("finish.committed")
            span.note(succeeded=tally.succeeded, failed=tally.failed)
            logger.info(
                "%s: chunk %s: %d succeeded, %d failed, %d not applicable, %d moved, %d cancelled "
                "in %.2f s.",
                runner.label,
                chunk.pk,
                tally.succeeded,
                tally.failed,
                tally.not_applicable,
                tally.moved,
                tally.cancelled - tally.not_applicable,
                time.monotonic() - work.began_at,
            )
        # However the chunk ended, some results may have been recorded.
        _follow_up(work)


def _set_aside(work: Work, error: Exception) -> bool:
    """Park what is left of the chunk. Return whether its lease was still held."""
    chunk, seconds, reason = work.lease.chunk, pause_after(work.lease.chunk), one_line(error)
    message = "%s: chunk %s cannot be recorded; tried again later."
    logger.error(message, chunk.runner, chunk.pk, exc_info=error)
    leave_connections()
    try:
        left = Run.objects.pending().filter(chunk=chunk)
        moved = [Result.moved(run, again_in=seconds, reason=reason) for run in left]
        work.is_followed = True
        record(work.lease, moved, Tally.of(chunk), size=chunk.size, is_last=True, is_followed=True)
        work.has_moved = True
    except LeaseLost:
        return False
    except Exception:  # noqa: BLE001  no run can be moved, either
        return set_aside(work.lease, reason, seconds=seconds)
    return True


def _follow_up(work: Work) -> None:
    """Do what follows a chunk. Never raises.

    After a crash upkeep plans and releases. Run times are then not measured, and rows that were
    deleted without a signal are not retired.
    """
    runner, chunk = work.runner, work.lease.chunk
    priority = chunk.priority
    if priority == Chunk.Priority.RELATED:  # related rows are the runner's own concern
        priority = Chunk.Priority.SWEEP
    elif priority in WRITTEN.values():
        priority = Chunk.Priority.WRITE
    with _guarded(runner, "planning its dependents"):
        is_followed = work.is_followed or work.unexpected
        if is_followed:
            with kept(work.lease.following()):
                _plan_what_follows(work, priority)
        crash_point("finish.dependents")
        if is_followed:
            work.lease.following().update(expires_at=None)
    with _guarded(runner, "measuring its run time"):
        _measure(chunk.node, work.seconds)
    released: set[int | None] = set()
    with _guarded(runner, "releasing more"):
        if chunk.publications:  # one that was never sent took no room
            released = release_after(chunk)
    with _guarded(runner, "finishing its batch"):
        if chunk.batch_id is not None:
            if work.has_moved:
                batches.cancel_moved(chunk.batch_id)
            # The end of a chunk that was just released will look at the batch.
            if chunk.batch_id not in released:
                batches.finish_if_done(chunk.batch_id)


def _plan_what_follows(work: Work, priority: int) -> None:
    runner = work.runner
    if work.unexpected:
        with _guarded(runner, "retiring the runs of deleted rows"):
            retire_missing(runner, work.unexpected)
    try:
        if work.unexpected:
            plan = partial(plan_for_all, [runner], work.unexpected, priority=priority)
            repeated_while_away(plan)
    finally:
        if work.succeeded:
            plan_dependents(work.lease.chunk.node, work.succeeded, priority=priority)


@contextmanager
def _guarded(runner: Runner, step: str) -> Iterator[None]:
    """Log an exception of the block, and continue after it."""
    try:
        yield
    except Exception:
        logger.exception("%s: %s failed after a chunk.", runner.label, step)
        leave_connections()


def _measure(node: Node, seconds: list[float]) -> None:
    """Update the node's run time, a moving average."""
    if not seconds:
        return
    newest, known = max(mean(seconds), SHORTEST), node.run_seconds
    average = newest if known is None else known + NEWEST_WEIGHT * (newest - known)
    if known is None or abs(average - known) > WORTH_WRITING * known:
        Node.objects.filter(pk=node.pk).update(run_seconds=average)
        # The process keeps its nodes, and does not read them again.
        node.run_seconds = average
