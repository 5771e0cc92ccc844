"""What a worker does with the message that carries a chunk's id."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean
from typing import TYPE_CHECKING

from autorun import analysis as analyses
from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.declare.interruption import Interrupted, Termination
from autorun.declare.runner import Runner
from autorun.dispatch.messages import longest
from autorun.dispatch.releasing import release, send
from autorun.dispatch.sizes import LARGEST, TARGET_SECONDS
from autorun.exceptions import LeaseLost, NotRegistered
from autorun.execution.announcements import chunk_failed
from autorun.execution.keeper import Keeper
from autorun.execution.work import Work
from autorun.models import Chunk, Node
from autorun.planning import batches
from autorun.planning.named import plan_or_write_down
from autorun.state import probes
from autorun.state.leases import next_urgent, park, queued, requeue, start
from autorun.state.probes import crash_point
from autorun.state.transactions import leave_broken_connections

if TYPE_CHECKING:
    from autorun.analysis import Analysis

logger = logging.getLogger(__name__)

#: Urgent chunks a worker takes before the one its message is about.
MOST_URGENT = 10
#: A chunk whose message was sent so often is parked by a worker that does not know its runner.
SENDINGS = 3
#: The weight of the last chunk in a node's measured run time, and what change is worth a write.
NEWEST_WEIGHT = 0.3
WORTH_WRITING = 0.1
#: Anything shorter makes no chunk larger.
SHORTEST = TARGET_SECONDS / LARGEST


def execute(chunk_id: int) -> None:
    """Work off the chunk, and before it whatever is more urgent, if nobody else has.

    Celery ends the process when the message's time limit is over. What might take longer than what
    is left of it is not begun: an urgent chunk has its own message, and this one is sent again.
    """
    chunk = queued(chunk_id)
    if chunk is None:
        logger.debug("Chunk %s is not queued: its message is a late or repeated one.", chunk_id)
        return
    seconds = longest(chunk)
    deadline = math.inf if seconds is None else time.monotonic() + seconds + settings.LEASE
    left: list[int] = []
    for _ in range(MOST_URGENT):
        urgent = next_urgent(chunk, but=left)
        if urgent is None:
            break
        if not _is_equipped_for(urgent):
            left.append(urgent.pk)  # its own message finds another worker
        elif _ends_before(deadline, urgent):
            _execute_one(urgent)
        else:
            break
    if _ends_before(deadline, chunk):
        _execute_one(chunk)
    else:
        send([chunk])


def _ends_before(deadline: float, chunk: Chunk) -> bool:
    seconds = longest(chunk)
    return time.monotonic() + (math.inf if seconds is None else seconds) <= deadline


def _execute_one(chunk: Chunk) -> None:
    try:
        runner, analysis = _equipment(chunk)
    except NotRegistered as missing:
        _requeue_or_park(chunk, str(missing))
        return
    lease = start(chunk)
    if lease is None:
        return
    crash_point("start.leased")
    work_off(Work(lease, runner, analysis))
    with _guarded(runner, "releasing more"):
        release(chunk.node_id)


def _equipment(chunk: Chunk) -> tuple[Runner, Analysis]:
    """What the chunk is run with; raises NotRegistered where this worker does not have it."""
    return registry.get(chunk.runner), analyses.get(chunk.node.title, chunk.node.version)


def _is_equipped_for(chunk: Chunk) -> bool:
    try:
        _equipment(chunk)
    except NotRegistered:
        return False
    return True


def _requeue_or_park(chunk: Chunk, reason: str) -> None:
    """Leave a chunk that this worker cannot run to another, or aside when that was tried before.

    While a new version is rolled out, some workers have it and some have not.
    """
    if chunk.publications < SENDINGS:
        if requeue(chunk):
            logger.info("%s: requeued chunk %s: %s", chunk.runner, chunk.pk, reason)
            send([chunk])
    elif park(chunk, reason):
        logger.error("%s: parked chunk %s: %s", chunk.runner, chunk.pk, reason)


def work_off(work: Work) -> None:
    """Run what is to be run of a started chunk, and do what follows from that."""
    runner, chunk = work.runner, work.lease.chunk
    with probes.span("autorun.chunk") as span, Termination() as termination:
        span.note(runner=runner.label, chunk=chunk.pk, batch=chunk.batch_id or 0, size=chunk.size)
        try:
            with Keeper(work, follow_up=lambda: _follow_up(work)):
                work.assign()
                crash_point("start.assigned")
                tally = work.perform(termination)
        except LeaseLost as lost:
            logger.warning("%s: %s What was not recorded is lost.", runner.label, lost)
        except Interrupted:
            logger.info("%s: gave chunk %s back: the worker stops.", runner.label, chunk.pk)
        else:
            crash_point("finish.committed")
            span.note(succeeded=tally.succeeded, failed=tally.failed)
            logger.info(
                "%s: chunk %s: %d succeeded, %d failed, %d go on, %d cancelled, in %.2f s.",
                runner.label,
                chunk.pk,
                tally.succeeded,
                tally.failed,
                tally.moved,
                tally.cancelled,
                time.monotonic() - work.began_at,
            )
        # Results are recorded as they come: whatever has ended the chunk, some may be.
        _follow_up(work)


def _follow_up(work: Work) -> None:
    """What the end of a chunk gives rise to; a crash in here costs latency only. Never raises.

    The results are recorded, and the worker lives on: nobody would look after a step left out.
    """
    runner, chunk = work.runner, work.lease.chunk
    priority = Chunk.Priority(chunk.priority)
    if work.unexpected:
        plan_or_write_down([runner], work.unexpected, priority=priority)
    with _guarded(runner, "planning what depends on it"):
        if work.succeeded and (dependents := nodes.dependents(runner)):
            plan_or_write_down(dependents, work.succeeded, priority=priority)
        crash_point("finish.dependents")
    with _guarded(runner, "measuring its run time"):
        _measure(chunk.node, work.seconds)
    with _guarded(runner, "finishing its batch"):
        if chunk.batch_id is not None:
            batches.finish_if_done(chunk.batch_id)
    if work.has_failed:
        chunk_failed.send_robust(type(runner), runner=runner)


@contextmanager
def _guarded(runner: Runner, step: str) -> Iterator[None]:
    """Log what the block raises, and go on."""
    try:
        yield
    except Exception:
        logger.exception("%s: %s failed after a chunk.", runner.label, step)
        leave_broken_connections()


def _measure(node: Node, seconds: list[float]) -> None:
    """Let the node's measured run time follow what its runs took."""
    if not seconds:
        return
    newest, known = max(mean(seconds), SHORTEST), node.run_seconds
    average = newest if known is None else known + NEWEST_WEIGHT * (newest - known)
    if known is None or abs(average - known) > WORTH_WRITING * known:
        Node.objects.filter(pk=node.pk).update(run_seconds=average)
        # A process that knows its node asks for it no more.
        node.run_seconds = average
