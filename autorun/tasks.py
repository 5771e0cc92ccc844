"""The Celery tasks: doors to what the other modules do. Only JSON goes in.

Only a worker needs what is behind them, and a web process starts without it: `workers` imports it
before the pool forks, and each task by itself where there is no such worker.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from celery import current_app, shared_task
from django.db import InterfaceError, OperationalError
from django.dispatch import receiver

from autorun.declare import registry
from autorun.declare.interruption import soft_limit_ignored
from autorun.declare.runner import Runner
from autorun.execution.announcements import chunk_failed
from autorun.planning import batches
from autorun.planning.looks import backfill_now, go_on, sweep_now
from autorun.planning.scope import Scope
from autorun.triggers import delivery

# Acknowledged when received: what a worker has not finished is known to the database, and a broker
# that delivers it again (Redis after its visibility timeout, RabbitMQ after its consumer timeout)
# would only make work.
_options: dict[str, Any] = {"acks_late": False, "ignore_result": True, "serializer": "json"}
# What only looks for pending rows may well look again when the database was away.
_repeatable: dict[str, Any] = {
    **_options,
    "autoretry_for": (OperationalError, InterfaceError),
    "retry_backoff": True,
    "max_retries": 6,
}
#: Of the rows that were saved, tries while the database is away, and the seconds between two of
#: them in the end: about a day.
MOST_TRIES = 1_000
LONGEST_PAUSE = 120.0


@shared_task(name="autorun.plan", bind=True, max_retries=MOST_TRIES, **_options)
def plan(self: Any, model_label: str, pks: Sequence[Any]) -> None:
    """Plan the rows of a model that were just saved, for every runner that subscribes to them.

    A lone one is worked off, too, where no limit stands against it. While the database is away it
    tries again, for a day: nothing else knows of the rows until the next sweep. Where no runner
    subscribes, the rows wait for a worker whose code has one: whoever saved them knew of it.
    """
    from autorun.execution.at_once import plan_or_start
    from autorun.execution.execute import work_off

    subscribers = delivery.subscribers(model_label)
    try:
        with soft_limit_ignored():
            if not subscribers:
                delivery.write_down({model_label: set(pks)})
            elif (work := plan_or_start(subscribers, pks)) is not None:
                work_off(work)
    except (OperationalError, InterfaceError) as away:
        if self.request.is_eager:  # Celery would not wait then
            raise
        raise self.retry(exc=away, countdown=_pause(self.request.retries)) from away


@shared_task(name="autorun.sweep", **_repeatable)
def sweep(label: str) -> None:
    """Plan whatever is pending for a runner, unless another sweep of it is at it."""
    with soft_limit_ignored():
        sweep_now(registry.get(label))


@shared_task(name="autorun.backfill", **_options)
def backfill(
    label: str,
    filter: str | None = None,
    pks: Sequence[Any] | None = None,
    only: str | None = None,
    force: bool = False,
    limit: int | None = None,
    window: int | None = None,
    batch: int | None = None,
) -> None:
    """Plan what is already there: a runner's default queryset, a named filter, or a list of keys.

    With `batch`, the id of one whose process has gone silent, that one is planned on.
    """
    with soft_limit_ignored():
        if batch is not None:
            taken = batches.take_over(batch)
            if taken is not None:
                go_on(taken)
            return
        named = None if pks is None else tuple(pks)
        scope = Scope(filter=filter, pks=named, only=only, force=force)
        backfill_now(registry.get(label), scope, limit=limit, window=window)


@shared_task(name="autorun.execute", **_options)
def execute(chunk_id: int) -> None:
    """Work off a chunk, if nobody else has started it."""
    from autorun.execution.execute import execute

    with soft_limit_ignored():
        execute(chunk_id)


@shared_task(name="autorun.upkeep", **_options)
def upkeep() -> None:
    """Rescue, release, drain and prune, unless another process has just done so."""
    from autorun.observe.notifying import notify_due
    from autorun.upkeep.rounds import upkeep

    with soft_limit_ignored():
        upkeep(notify=notify_due)


@receiver(chunk_failed, dispatch_uid="autorun.tasks")
def _notify(runner: Runner, **_: Any) -> None:
    from autorun.observe.notifying import notify_soon

    notify_soon(runner)


def _pause(retries: int) -> float:
    """The seconds until a saved row is tried again: longer and longer, and never all at once."""
    longest = LONGEST_PAUSE
    # A worker holds the message meanwhile. Redis would hand it to another one, which held it, too.
    visible = (current_app.conf.broker_transport_options or {}).get("visibility_timeout")
    if visible:
        longest = min(longest, visible / 2)
    return min(2.0 ** min(retries, 10), longest) * random.uniform(0.5, 1)
