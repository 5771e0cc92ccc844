"""Signals of a Celery worker: overdue upkeep, and the rescue after a process's death."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import signals
from django.db import DatabaseError, InterfaceError, connections
from django.db.models import QuerySet

from autorun import analysis
from autorun.conf import settings
from autorun.declare.code_digest import code_digest
from autorun.dispatch.messages import BACKFILL, EXECUTE, named_batch
from autorun.exceptions import UnsuitablePool
from autorun.execution import tails
from autorun.models import Batch, Chunk, Pulse, SpilledTrigger
from autorun.state import draining, user_code
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.environment import environment_digest
from autorun.state.leases import FAMILY
from autorun.state.logs import get_logger
from autorun.triggers.delivery import PLAN, PLAN_SPILLED, spill
from autorun.triggers.on_schedule import SWEEP

logger = get_logger(__name__)

#: Seconds after its start before a process looks whether a round is overdue.
FIRST_LOOK = 10.0
#: Intervals without a round after which a process that ends a chunk makes it.
OVERDUE = 3

#: Celery's name of this worker.
_node_name: str | None = None
#: Makes a round, unless another process has.
_make_round: Callable[[], bool]
#: When this process looks whether a round is overdue.
_look_at = time.monotonic() + FIRST_LOOK


def connect(make_round: Callable[[], bool]) -> None:
    """Listen to Celery; once. `make_round` makes a round, unless another process has."""
    global _make_round  # noqa: PLW0603
    _make_round = make_round
    for celery_signal, listener in (
        (signals.worker_init, _prepare),
        (signals.worker_ready, _begin),
        (signals.worker_shutdown, _end),
        (signals.worker_process_init, _begin),
        (signals.task_failure, _child_died),
        (signals.task_postrun, _make_overdue_round),
    ):
        celery_signal.connect(listener, weak=False, dispatch_uid="autorun.upkeep.workers")


def _prepare(sender: Any, **_: Any) -> None:
    """Import what tasks need before the pool forks; name what it cannot run; add upkeep."""
    # The memory by which saved rows interrupt backfills is shared from then on. The digests are
    # those of the code that the worker has imported, so they are computed now.
    import autorun.execution.at_once
    import autorun.execution.execute
    import autorun.upkeep.rounds  # noqa: F401
    from autorun.upkeep import bootstep

    user_code.connect()
    environment_digest()
    for each in analysis.registered():
        code_digest(each.function)
        try:
            analysis.get_executable(each.title, each.version)
        except UnsuitablePool as error:
            logger.error("%s Until then its runs wait.", error)
    global _node_name  # noqa: PLW0603
    _node_name = sender.hostname
    draining.prepare(sender.hostname)
    bootstep.add_to(sender, _make_round)


def _begin(**_: Any) -> None:
    """Prepare a pool process, or the main process, whose threads may be the pool."""
    # Celery has replaced its standard output by now.
    tails.listen()


def _end(**_: Any) -> None:
    """Note that the worker has ended; its pool is gone, so no child inherits the connection."""
    with suppress(DatabaseError, InterfaceError):  # its silence says the same
        draining.end()
    connections.close_all()


def _make_overdue_round(sender: Any = None, **_: Any) -> None:
    """Make an overdue round: a worker's main process is missing, or hangs."""
    global _look_at  # noqa: PLW0603
    now = time.monotonic()
    if now < _look_at or getattr(sender, "name", None) not in (EXECUTE, PLAN):
        return
    seconds = OVERDUE * settings.UPKEEP_INTERVAL
    _look_at = now + seconds
    if connections[settings.DATABASE].in_atomic_block:  # the caller's, in eager mode
        return
    try:
        if Pulse.objects.filter(name="upkeep", beat_at__gt=from_now(-seconds)).exists():
            return
        _make_round()
    except Exception as error:  # noqa: BLE001
        logger.warning("Upkeep: an overdue round failed: %s", error)


def _child_died(sender: Any, exception: BaseException, args: Any, **_: Any) -> None:
    """End the leases of a dead process at once, and store the rows it should have planned."""
    name = getattr(sender, "name", None)
    is_death = type(exception).__name__ in ("WorkerLostError", "TimeLimitExceeded", "Terminated")
    if name not in (EXECUTE, PLAN, PLAN_SPILLED, BACKFILL, SWEEP) or not is_death:
        return
    try:
        # Held by a process of this worker that no longer exists.
        running = _held_here().values_list("pk", "worker")
        orphans = [pk for pk, worker in running if not _is_alive(int(worker.rpartition(":")[2]))]
        if name == EXECUTE:  # a process that exceeded its time may still be dying
            orphans.append(args[0])
            # Of one that has not started, only the first message is sent again without a pause.
            lost = Chunk.objects.queued().filter(pk=args[0], publications=1)
            lost.update(state=Chunk.State.WAITING)
        # Another worker may have started the message's chunk meanwhile.
        _held_here().filter(pk__in=orphans).update(expires_at=DatabaseNow())
        if name == PLAN:  # only its message named these rows
            model_label, pks, *_ = args  # a message about deleted rows also has the time
            spill({model_label: set(pks)})
        if name == PLAN_SPILLED:
            ids, tries = args
            SpilledTrigger.objects.filter(pk__in=ids, tries=tries + 1).update(expires_at=None)
        if name == SWEEP:
            sweeps = Batch.objects.unplanned().filter(runner=args[0], trigger=Batch.Trigger.SWEEP)
            sweeps.update(expires_at=DatabaseNow())
        if name == BACKFILL and (batch_id := named_batch(args)) is not None:
            Batch.objects.unplanned().filter(pk=batch_id).update(expires_at=DatabaseNow())
    except Exception:
        logger.exception("Leases of a process that has died run out by themselves.")
    finally:
        # The next child would inherit an open connection of the parent process.
        connections.close_all()


def _held_here() -> QuerySet[Chunk]:
    return Chunk.objects.leased().filter(worker__startswith=f"{_node_name}:{FAMILY}:")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
