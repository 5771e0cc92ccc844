"""The worker's parent process: it sends upkeep's messages, and ends the leases of dead children."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from celery import signals
from django.db import connections
from django.db.models import QuerySet

from autorun import analysis
from autorun.conf import settings
from autorun.dispatch.messages import EXECUTE
from autorun.dispatch.publishing import Message, publish
from autorun.exceptions import BrokerUnavailable, UnsuitablePool
from autorun.models import Chunk, SpilledTrigger
from autorun.state.clock import DatabaseNow
from autorun.state.leases import FAMILY
from autorun.triggers.delivery import PLAN, spill
from autorun.upkeep.draining import DRAIN

logger = logging.getLogger(__name__)

_stop = threading.Event()
#: Celery's name of this worker.
_node_name: str | None = None


def connect() -> None:
    """Listen to Celery; once."""
    signals.worker_init.connect(_import_work, weak=False, dispatch_uid="autorun.upkeep.workers")
    signals.worker_ready.connect(_begin, weak=False, dispatch_uid="autorun.upkeep.workers")
    signals.worker_shutting_down.connect(_end, weak=False, dispatch_uid="autorun.upkeep.workers")
    signals.task_failure.connect(_child_died, weak=False, dispatch_uid="autorun.upkeep.workers")


def _import_work(**_: Any) -> None:
    """Import what tasks import on demand, before the pool forks; name what its pool cannot run."""
    import autorun.execution.at_once
    import autorun.upkeep.rounds  # noqa: F401

    for each in analysis.registered():
        try:
            analysis.get_executable(each.title, each.version)
        except UnsuitablePool as error:
            logger.error("%s Until then its runs wait.", error)


def _begin(sender: Any = None, **_: Any) -> None:
    """Send upkeep's message now and every few seconds, so that projects need no beat for it."""
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
    """End the leases of a process that has died at once, and write down the rows it was to plan."""
    name = getattr(sender, "name", None)
    if name not in (EXECUTE, PLAN, DRAIN) or not _is_death(exception):
        return
    try:
        orphans = _orphans()
        if name == EXECUTE:  # a process that exceeded its time may still be dying
            orphans.append(args[0])
        # Another worker may have started the message's chunk meanwhile.
        _held_here().filter(pk__in=orphans).update(expires_at=DatabaseNow())
        if name == PLAN:  # only its message named these rows
            model_label, pks = args
            spill({model_label: set(pks)})
        if name == DRAIN:
            ids, tries = args
            SpilledTrigger.objects.filter(pk__in=ids, tries=tries + 1).update(expires_at=None)
    except Exception:
        logger.exception("Leases of a process that has died run out by themselves.")
    finally:
        # The next child would inherit an open connection of the parent process.
        connections.close_all()


def _orphans() -> list[int]:
    """Chunks held by a process of this worker that no longer exists."""
    running = _held_here().values_list("pk", "worker")
    return [pk for pk, worker in running if not _is_alive(int(worker.rpartition(":")[2]))]


def _held_here() -> QuerySet[Chunk]:
    return Chunk.objects.running().filter(worker__startswith=f"{_node_name}:{FAMILY}:")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_death(exception: BaseException) -> bool:
    return type(exception).__name__ in ("WorkerLostError", "TimeLimitExceeded", "Terminated")
