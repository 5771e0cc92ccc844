"""What autorun does in the worker's own process: upkeep by its clock, and news of dead children."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from celery import signals
from django.db import connections
from django.db.models import QuerySet

from autorun.conf import settings
from autorun.dispatch.messages import EXECUTE
from autorun.dispatch.publishing import Message, publish
from autorun.exceptions import BrokerUnavailable
from autorun.models import Chunk
from autorun.state.clock import DatabaseNow
from autorun.triggers.delivery import PLAN, spill

logger = logging.getLogger(__name__)

_stop = threading.Event()
#: What Celery calls this worker.
_node_name: str | None = None


def connect() -> None:
    """Listen to Celery; once."""
    signals.worker_init.connect(_import_work, weak=False, dispatch_uid="autorun.upkeep.workers")
    signals.worker_ready.connect(_begin, weak=False, dispatch_uid="autorun.upkeep.workers")
    signals.worker_shutting_down.connect(_end, weak=False, dispatch_uid="autorun.upkeep.workers")
    signals.task_failure.connect(_child_died, weak=False, dispatch_uid="autorun.upkeep.workers")


def _import_work(**_: Any) -> None:
    """Import what tasks import by themselves, once and before the pool forks."""
    import autorun.execution.at_once
    import autorun.upkeep.rounds  # noqa: F401


def _begin(sender: Any = None, **_: Any) -> None:
    """Send upkeep's message now and every few seconds, so that a project without beat heals too.

    Whoever executes one looks whether somebody else has just done the work.
    """
    global _node_name  # noqa: PLW0603
    _node_name = getattr(sender, "hostname", None)
    _stop.clear()
    threading.Thread(target=_send_upkeep, name="autorun-upkeep", daemon=True).start()


def _send_upkeep() -> None:
    while True:
        interval = settings.UPKEEP_INTERVAL
        try:
            publish([Message("autorun.upkeep", queue=settings.QUEUE, expires=max(interval, 1))])
        except BrokerUnavailable as error:
            logger.debug("No upkeep: %s", error)
        if _stop.wait(interval):
            return


def _end(**_: Any) -> None:
    _stop.set()


def _child_died(sender: Any, exception: BaseException, args: Any, **_: Any) -> None:
    """End the leases of a process that has died, and have planned what it was to plan.

    Upkeep need not wait for the leases to run out, then, and no saved row for the next sweep.
    """
    name = getattr(sender, "name", None)
    if name not in (EXECUTE, PLAN) or not _is_death(exception):
        return
    try:
        orphans = _orphans()
        if name == EXECUTE:  # one that exceeded its time may not be quite dead yet
            orphans.append(args[0])
        # Its message may have been about a chunk that another worker has begun meanwhile.
        _held_here().filter(pk__in=orphans).update(expires_at=DatabaseNow())
        if name == PLAN:  # which rows it was about nobody else knows
            model_label, pks = args
            spill({model_label: set(pks)})
    except Exception:
        logger.exception("Leases of a process that has died run out by themselves.")
    finally:
        # This is the worker's parent process: a connection left open would be inherited by the
        # next child.
        connections.close_all()


def _orphans() -> list[int]:
    """Chunks that a process of this worker holds, or held, which is no more."""
    running = _held_here().values_list("pk", "worker")
    return [pk for pk, worker in running if not _is_alive(int(worker.rpartition(":")[2]))]


def _held_here() -> QuerySet[Chunk]:
    """Chunks that processes of this worker work on, or did when they died."""
    return Chunk.objects.running().filter(worker__startswith=f"{_node_name}:")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_death(exception: BaseException) -> bool:
    return type(exception).__name__ in ("WorkerLostError", "TimeLimitExceeded", "Terminated")
