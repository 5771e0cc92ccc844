"""The life of a batch: begun, planned a window at a time, paused, cancelled, finished."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any

from django.db import DatabaseError, InterfaceError, transaction
from django.db.models import Exists, F, QuerySet

from autorun.conf import settings
from autorun.declare import nodes
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.dispatch.releasing import release
from autorun.exceptions import LeaseLost
from autorun.models import Batch, Chunk, Run
from autorun.planning.outcome import Outcome
from autorun.signals import announce_batch
from autorun.state.clock import DatabaseNow
from autorun.state.counts import BatchCounts, batch_counts
from autorun.state.crash_points import crash_point
from autorun.state.leases import PLANNING_LEASES, ends_at, planning_ends_at
from autorun.state.managers import ChunkQuerySet
from autorun.state.transactions import is_passing, repeated_on_conflict

#: A batch that so many processes in turn have begun to plan, without getting any further, fails.
MOST_TRIES = 5
#: What one transaction of a cancellation ends at most; a single chunk may have more runs.
CHUNKS_AT_ONCE = 500
RUNS_AT_ONCE = 20_000


def begin(runner: Runner, trigger: Batch.Trigger, **fields: Any) -> Batch:
    """A new batch that this process plans."""
    batch = Batch(
        runner=runner.label, node=node_of(runner), trigger=trigger, token=1, tries=1, **fields
    )
    batch.is_given = bool(batch.scope.get("given"))
    beyond = ("given", "beyond_base", "source")
    batch.is_beyond_base = any(batch.scope.get(name) for name in beyond)
    batch.expires_at = planning_ends_at()
    batch.save(force_insert=True, using=settings.DATABASE)
    return batch


def begin_alone(runner: Runner, trigger: Batch.Trigger, **fields: Any) -> Batch | None:
    """`begin`, or None where another batch of that runner and trigger is being planned.

    One that its process has left, and that upkeep would have planned on, is taken over instead.
    """
    node = node_of(runner)

    def begin_unless_there_is_one() -> Batch | None:
        nodes.lock(node.pk)
        alike = Batch.objects.filter(runner=runner.label, node=node, trigger=trigger)
        unplanned = alike.unplanned()
        left = unplanned.lapsed().order_by("pk")
        # Locked before it is asked who plans: upkeep may be about to have one planned on.
        left_ids = list(left.select_for_update().values_list("pk", flat=True))
        if unplanned.filter(expires_at__gt=DatabaseNow()).exists():
            return None
        taken = (take_over(batch_id) for batch_id in left_ids)
        return next(filter(None, taken), None) or begin(runner, trigger, **fields)

    return repeated_on_conflict(begin_unless_there_is_one, using=settings.DATABASE)


def take_over(batch_id: int) -> Batch | None:
    """The batch, to be planned on by this process, if the one that planned it has gone silent.

    It fails instead where MOST_TRIES processes have gone silent at the same place.
    """
    silent = Batch.objects.filter(pk=batch_id).unplanned().lapsed()
    stuck = silent.filter(tries__gte=MOST_TRIES).update(
        state=Batch.State.FAILED,
        reason=f"{MOST_TRIES} processes in turn have begun to plan it and have got no further than "
        "before: they died, or a hook or a statement took too long. Their logs may say more.",
        expires_at=None,
        finished_at=DatabaseNow(),
    )
    taken = not stuck and silent.update(
        token=F("token") + 1, tries=F("tries") + 1, expires_at=planning_ends_at()
    )
    return Batch.objects.select_related("node").get(pk=batch_id) if taken else None


def advance(batch: Batch, outcome: Outcome, *, cursor: str) -> None:
    """Book a planned window, in the transaction that records its runs; the last has no `cursor`.

    Raises LeaseLost where the batch was paused, cancelled or taken over: the window is undone.
    """
    # A force has nothing but this to tell that it has run what it was to run again: the last window
    # is booked together with the fact that it was the last.
    is_last = not cursor
    booked = _held(batch).update(
        cursor=F("cursor") if is_last else cursor,
        planned_at=DatabaseNow() if is_last else None,
        candidates=F("candidates") + outcome.candidates,
        existing=F("existing") + outcome.existing,
        planned=F("planned") + outcome.planned,
        unprepared=F("unprepared") + outcome.unprepared,
        tries=1,
        expires_at=None if is_last else planning_ends_at(),
    )
    if not booked:
        raise LeaseLost(f"{batch} was paused, cancelled or taken over.")


def planned(batch: Batch) -> None:
    """Record that nothing is left to plan."""
    _held(batch).update(planned_at=DatabaseNow(), expires_at=None)
    finish_if_done(batch.pk)
    batch.refresh_from_db()


def hand_on(batch: Batch) -> None:
    """Have upkeep plan the rest at once, and not when the lease of this process runs out.

    For what passes: the batch's tries are counted anew.
    """
    _held(batch).filter(planned_at=None).update(expires_at=DatabaseNow(), tries=0)


def put_off(batch: Batch) -> bool:
    """Leave planning to another process, later and later; False where that was tried often enough.

    For what this process cannot plan, but perhaps another: one with newer code.
    """
    if batch.tries >= MOST_TRIES:
        return False
    later = ends_at(min(2 ** (batch.tries - 1), PLANNING_LEASES))
    return bool(_held(batch).filter(planned_at=None).update(expires_at=later))


def fail(batch: Batch, reason: str) -> None:
    """Record that planning broke off; what it had planned goes on."""
    _held(batch).update(
        state=Batch.State.FAILED, reason=reason, expires_at=None, finished_at=DatabaseNow()
    )


def break_off(batch: Batch, error: Exception) -> None:
    """Have the batch planned on where what was raised will pass; where not, it has failed."""
    # A caller's transaction that the error has broken takes no more statements.
    with suppress(DatabaseError, InterfaceError):
        if is_passing(error):
            hand_on(batch)
        else:
            fail(batch, f"{type(error).__name__}: {error}")


def finish_if_done(batch_id: int) -> bool:
    """Finish the batch once it is planned and none of its chunks is left; whether it was now."""
    unfinished = Chunk.objects.filter(batch_id=batch_id).unfinished()
    if unfinished.exists():
        return False
    batch = Batch.objects.filter(pk=batch_id).planned()
    with transaction.atomic(using=settings.DATABASE):
        is_planned = batch.select_for_update().values_list("pk").first() is not None
        # Asked again: its last window may have been planned since the chunks were asked for.
        if not is_planned or unfinished.exists():
            return False
        batch.update(state=Batch.State.FINISHED, finished_at=DatabaseNow())
        announce_batch(batch_id)
    return True


def pause(batch: Batch) -> bool:
    """Plan and release no more of the batch; what is in flight goes on. Whether it was running.

    A queryset that was given is planned to its end: nobody else could go on with it later.
    """
    return bool(
        Batch.objects.filter(pk=batch.pk, state=Batch.State.RUNNING).update(
            state=Batch.State.PAUSED
        )
    )


def resume(batch: Batch) -> bool:
    """Go on with a paused batch; upkeep takes its planning up. Whether it was paused."""
    planner = {} if batch.is_given else {"expires_at": DatabaseNow(), "tries": 0}
    resumed = Batch.objects.filter(pk=batch.pk, state=Batch.State.PAUSED).update(
        state=Batch.State.RUNNING, **planner
    )
    if resumed:
        release(batch.node_id)
        finish_if_done(batch.pk)
    return bool(resumed)


def cancel(batch: Batch, *, reason: str = "") -> int:
    """Give up what of the batch has not been started; how many runs. What is running goes on.

    From the first moment no chunk of it is started any more; what had been planned is given up in
    short transactions after that, by upkeep where this process dies in between. The rows are
    pending again, so that a later sweep takes them.
    """
    Batch.objects.unfinished().filter(pk=batch.pk).update(
        state=Batch.State.CANCELLED,
        reason=reason,
        # As long as anything of it may be left; then None.
        expires_at=ends_at(),
        finished_at=DatabaseNow(),
    )
    crash_point("cancel.batch")
    return _give_up(batch.pk)


def go_on_cancelling(batch_id: int) -> int:
    """Give up what is left of a cancelled batch that nobody is at; how many runs.

    That is what a process left that died, and what a running chunk has put into new ones.
    """
    silent = Batch.objects.filter(pk=batch_id).cancelled().lapsed()
    return _give_up(batch_id) if silent.update(expires_at=ends_at()) else 0


def cancel_unstarted(label: str) -> int:
    """Give up what was planned for the runner of that label and not started; how many runs."""
    return _cancel_unstarted(Chunk.objects.filter(runner=label))


def counts(batch: Batch) -> BatchCounts:
    """What came of the batch so far, from the counts that it and its chunks keep."""
    return batch_counts([batch.pk])[batch.pk]


def _held(batch: Batch) -> Any:
    planned_on = [Batch.State.RUNNING, *([Batch.State.PAUSED] if batch.is_given else [])]
    return Batch.objects.filter(pk=batch.pk, token=batch.token, state__in=planned_on)


def _give_up(batch_id: int) -> int:
    chunks = Chunk.objects.filter(batch_id=batch_id)
    number = _cancel_unstarted(chunks)
    cancelled = Batch.objects.filter(pk=batch_id).cancelled()
    cancelled.filter(~Exists(chunks.unfinished())).update(expires_at=None)
    return number


def _cancel_unstarted(chunks: ChunkQuerySet[Chunk]) -> int:
    number = 0
    for ids in _in_passes(chunks.unstarted().order_by("pk")):
        number += repeated_on_conflict(partial(_cancel_some, ids), using=settings.DATABASE)
    return number


def _in_passes(chunks: QuerySet[Chunk]) -> Iterator[list[int]]:
    """The ids of the chunks, so many at once as one short transaction can end."""
    last = 0
    while page := list(chunks.filter(pk__gt=last).values_list("pk", "size")[:CHUNKS_AT_ONCE]):
        runs_up_to = accumulate(size for _, size in page)
        few = [pk for (pk, _), runs in zip(page, runs_up_to, strict=True) if runs <= RUNS_AT_ONCE]
        ids = few or [page[0][0]]
        yield ids
        last = ids[-1]


def _cancel_some(chunk_ids: Collection[int]) -> int:
    # Locked in their order, and before their runs, as by a worker that ends one.
    unstarted = Chunk.objects.select_for_update().filter(pk__in=chunk_ids).unstarted()
    ids = list(unstarted.order_by("pk").values_list("pk", flat=True))
    cancelled = (
        Run.objects.filter(chunk_id__in=ids)
        .pending()
        .update(status=Run.Status.CANCELLED, is_current=None, finished_at=DatabaseNow())
    )
    crash_point("cancel.runs")
    Chunk.objects.filter(pk__in=ids).update(
        state=Chunk.State.FINISHED,
        token=F("token") + 1,
        # In this order: to MariaDB, what is left is none once the cancelled ones are counted.
        superseded_cancelled=F("superseded_cancelled") + Chunk.runs_left(),
        cancelled=F("cancelled") + Chunk.runs_left(),
        finished_at=DatabaseNow(),
    )
    return cancelled
