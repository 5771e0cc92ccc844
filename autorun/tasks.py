"""The Celery tasks, whose arguments are JSON.

The modules that only workers need are imported late, so that a web process starts without them:
`workers` imports them before the pool forks, else each task does.
"""

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

from celery import Task, current_app, shared_task
from django.db import DatabaseError, InterfaceError, OperationalError

from autorun.declare import registry
from autorun.declare.interruption import soft_limit_ignored
from autorun.declare.sets import RELATED
from autorun.planning import batches
from autorun.planning.named import plan_related
from autorun.planning.on_demand import backfill_now, go_on, sweep_now
from autorun.planning.retiring import retire
from autorun.planning.rows import primary_keys
from autorun.planning.scope import Scope
from autorun.state.keys import as_json
from autorun.state.transactions import is_passing, leave_connections
from autorun.state.user_code import replace_left
from autorun.triggers import delivery


class _Task(Task):  # type: ignore[type-arg]
    """A task that uses no connection as another has left it, and leaves none on which it failed."""

    def before_start(self, *_: Any) -> None:
        if not self.request.is_eager:  # else the transaction is the caller's
            replace_left()

    def on_failure(self, *_: Any, **__: Any) -> None:
        leave_connections()

    on_retry = on_failure


# Acknowledged when received: the database knows about unfinished work, so a second delivery (by
# Redis after its visibility timeout, by RabbitMQ after its consumer timeout) is not needed.
_options: dict[str, Any] = {
    "base": _Task,
    "acks_late": False,
    "ignore_result": True,
    "serializer": "json",
}
#: For saved rows while the database is away: about a day of tries, at most so many seconds apart.
MOST_TRIES = 1_000
LONGEST_PAUSE = 120.0
#: If it answers, but with an error, as before `migrate`: a quarter of an hour.
MOST_REFUSALS = 12


@shared_task(
    name="autorun.plan",
    bind=True,
    max_retries=MOST_TRIES,
    Request="autorun.execution.giving_way:SavedRows",
    **_options,
)
def plan(
    self: Any, model_label: str, pks: Sequence[Any], at: float = 0.0, *_: Any, **__: Any
) -> None:
    """Plan the saved rows of a model for every runner that subscribes to them.

    If they were deleted, at the time `at`, their runs are retired first, because new rows may have
    their keys. Related rows name those to be planned by a lookup.

    A single row is also executed if no limit forbids it. While the database is away the task is
    retried for a day: until the next sweep nothing else knows about the rows. Those that a runner
    cannot plan are stored. If no runner subscribes, they wait for a worker with newer code,
    as the process that saved them had. Arguments of a newer version are ignored, so that the rows
    need not wait for the next sweep.
    """
    from autorun.execution.at_once import plan_or_start
    from autorun.execution.execute import work_off

    *deleted, label = model_label.split(":")
    subscribers = delivery.runners_of(model_label)
    try:
        with soft_limit_ignored():
            if not subscribers:
                delivery.write_down({model_label: delivery.storable(model_label, pks)})
                return
            if model_label.startswith(RELATED):
                plan_related(subscribers, label, pks)
                return
            if deleted:
                deleted_at = dt.datetime.fromtimestamp(at, tz=dt.UTC)
                retire(subscribers, pks, using=deleted[-1], deleted_at=deleted_at)
            if (work := plan_or_start(subscribers, pks)) is not None:
                work_off(work)
    except (DatabaseError, InterfaceError) as error:
        if self.request.is_eager:  # then Celery would not wait
            raise
        pause = _pause(self.request.retries)
        most = MOST_TRIES if is_passing(error) else MOST_REFUSALS
        raise self.retry(exc=error, countdown=pause, max_retries=most) from error


@shared_task(
    name="autorun.sweep",
    **_options,
    autoretry_for=(OperationalError, InterfaceError),
    retry_backoff=True,
    max_retries=6,
)
def sweep(label: str) -> None:
    """Plan the pending rows of a runner, unless another sweep of it is in progress."""
    from autorun.execution.unlanded import land_unlanded

    with soft_limit_ignored():
        runner = registry.get(label)
        if sweep_now(runner) is not None:
            land_unlanded(runner)


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
    """Plan existing rows: a runner's default queryset, a named filter, or a list of keys.

    With `batch`, the id of a batch whose process is lost, continue to plan that one.
    """
    with soft_limit_ignored():
        if batch is not None:
            if (taken := batches.take_over(batch)) is not None:
                go_on(taken)
            return
        runner = registry.get(label)
        named = None if pks is None else tuple(as_json(primary_keys(runner, pks)))
        scope = Scope(filter=filter, pks=named, only=only, force=force)
        backfill_now(runner, scope, limit=limit, window=window)


@shared_task(name="autorun.execute", **_options)
def execute(chunk_id: int) -> None:
    """Execute a chunk, unless another worker has started it."""
    from autorun.execution.execute import execute

    with soft_limit_ignored():
        execute(chunk_id)


@shared_task(name="autorun.upkeep", **_options)
def upkeep() -> None:
    """Rescue, release, fold and prune, unless another process has just done so.

    Workers do so without a message; beat's tables may still have an entry of an earlier version.
    """
    with soft_limit_ignored():
        make_round()


def make_round() -> bool:
    """Make a round of upkeep, unless another process has just made one. Return whether it did."""
    from autorun.observe.notifying import hand_over_reports
    from autorun.upkeep.rounds import upkeep

    return upkeep(notify=hand_over_reports) is not None


@shared_task(name="autorun.plan_spilled", **_options)
def plan_spilled(ids: Sequence[int], tries: int) -> None:
    """Plan a portion of the saved rows that wait in the database."""
    from autorun.upkeep.spilled import plan_spilled

    with soft_limit_ignored():
        plan_spilled(ids, tries)


@shared_task(name="autorun.announce", **_options)
def announce(run_ids: Sequence[int], batch_ids: Sequence[int]) -> None:
    """Send the signals of runs and batches that upkeep has ended."""
    from autorun.upkeep.announcing import announce

    with soft_limit_ignored():
        announce(run_ids, batch_ids)


@shared_task(name="autorun.notify", **_options)
def notify(label: str) -> None:
    """Report the failures of a runner, if a report is due."""
    from autorun.observe.notifying import notify_soon

    with soft_limit_ignored():
        notify_soon(registry.get(label))


def _pause(retries: int) -> float:
    """The seconds until the next try, increasing, and at random so that tries spread out."""
    # The worker holds the message meanwhile, and then Redis would give it to a second worker.
    visible = (current_app.conf.broker_transport_options or {}).get("visibility_timeout")
    longest = min(LONGEST_PAUSE, visible / 2) if visible else LONGEST_PAUSE
    return min(2.0 ** min(retries, 10), longest) * random.uniform(0.5, 1)
