"""Batches: started, planned a window at a time, paused, cancelled and finished."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from itertools import accumulate
from operator import add
from typing import Any, Self

from django.db import DatabaseError, InterfaceError, transaction
from django.db.models import Exists, F, OuterRef, QuerySet

from autorun.conf import settings
from autorun.declare import nodes
from autorun.declare.base import Runner
from autorun.dispatch.releasing import release
from autorun.exceptions import LeaseLost
from autorun.models import Batch, Chunk
from autorun.planning import cancelling
from autorun.signals import announce_batch
from autorun.state.clock import DatabaseNow
from autorun.state.counts import BatchCounts, batch_counts, unstarted_runs
from autorun.state.exception_text import clean_text
from autorun.state.leases import PLANNING_LEASES, ends_at, new_token, planning_ends_at
from autorun.state.managers import BatchQuerySet, ChunkQuerySet
from autorun.state.masking import masked
from autorun.state.probes import crash_point
from autorun.state.sql import Slot, prepared
from autorun.state.transactions import (
    is_passing,
    once_committed,
    repeated_on_conflict,
    update_once_committed,
)

#: A batch fails after so many processes have tried to plan it without advancing.
MOST_TRIES = 5
#: Bytes of the reason why a batch has failed.
MOST_REASON = 4_000
#: The most that one transaction cancels; a single chunk may have more runs.
CHUNKS_AT_ONCE = 500
RUNS_AT_ONCE = 20_000
MARKED_AT_ONCE = 5_000
#: Seconds after which a page or a round of upkeep leaves the rest of a cancelled batch to the next.
CANCEL_WITHIN = 3.0


@dataclass(frozen=True)
class Outcome:
    """Numbers of candidates: `planned` got new runs, `existing` needed none.

    If they were counted, `failed` of the existing have no attempts left, and `under_way` have not
    finished.
    """

    candidates: int = 0
    existing: int = 0
    planned: int = 0
    unprepared: int = 0
    failed: int = 0
    under_way: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(add, astuple(self), astuple(other)))


def begin(runner: Runner, trigger: Batch.Trigger, **fields: Any) -> Batch:
    """Create a batch that this process plans."""
    batch = Batch(
        runner=runner.label,
        node=nodes.find_node(runner),
        trigger=trigger,
        token=new_token(),
        tries=1,
        **fields,
    )
    batch.is_given = bool(batch.scope.get("given"))
    beyond = ("given", "beyond_base", "source")
    is_beyond = any(batch.scope.get(name) for name in beyond)
    of_own = (Batch.Trigger.RELATED, Batch.Trigger.WRITE)
    batch.is_beyond_base = is_beyond and trigger not in of_own
    batch.expires_at = planning_ends_at()
    batch.save(force_insert=True, using=settings.DATABASE)
    return batch


def begin_alone(runner: Runner, trigger: Batch.Trigger, **fields: Any) -> Batch | None:
    """`begin`, or None if another batch of that runner and trigger is being planned.

    A batch whose process has gone silent is taken over instead.
    """
    node = nodes.find_node(runner)

    def begin_unless_there_is_one() -> Batch | None:
        nodes.lock(node.pk)
        alike = Batch.objects.filter(runner=runner.label, node=node, trigger=trigger)
        unplanned = alike.unplanned()
        left_ids = list(unplanned.lapsed().order_by("pk").values_list("pk", flat=True))
        # Locked before the next query: upkeep may be about to have one of them planned. By their
        # ids: on MariaDB any other condition waits for batches that views have just begun.
        list(Batch.objects.select_for_update().filter(pk__in=left_ids).values_list("pk"))
        if unplanned.filter(expires_at__gt=DatabaseNow()).exists():
            return None
        taken = (take_over(batch_id) for batch_id in left_ids)
        return next(filter(None, taken), None) or begin(runner, trigger, **fields)

    return repeated_on_conflict(begin_unless_there_is_one, holds_node=True)


def take_over(batch_id: int) -> Batch | None:
    """The batch, for this process to plan, if the one that planned it has gone silent.

    It fails instead if MOST_TRIES processes have gone silent at the same place.
    """
    silent = Batch.objects.filter(pk=batch_id).unplanned().lapsed()
    stuck = silent.filter(tries__gte=MOST_TRIES).update(
        state=Batch.State.FAILED,
        reason=f"{MOST_TRIES} processes in turn have tried to plan it without advancing: they "
        "died, or a hook or a statement took too long. Their logs may say more.",
        expires_at=None,
        finished_at=DatabaseNow(),
    )
    taken = not stuck and silent.update(
        token=new_token(), tries=F("tries") + 1, expires_at=planning_ends_at()
    )
    return Batch.objects.select_related("node").get(pk=batch_id) if taken else None


def advance(batch: Batch, outcome: Outcome, *, cursor: str) -> None:
    """Book a planned window, in the transaction that records its runs; the last has no `cursor`.

    Raises LeaseLost if the batch was paused, cancelled or taken over, or if the database has
    forgotten windows before this one: the window is rolled back.
    """
    # The last window also marks the batch as planned. A `force` knows only from this that its rows
    # have been rerun.
    is_last = not cursor
    booked = (
        _held(batch)
        .filter(cursor=batch.cursor)
        .update(
            cursor=F("cursor") if is_last else cursor,
            planned_at=DatabaseNow() if is_last else None,
            candidates=F("candidates") + outcome.candidates,
            existing=F("existing") + outcome.existing,
            planned=F("planned") + outcome.planned,
            unprepared=F("unprepared") + outcome.unprepared,
            tries=1,
            expires_at=None if is_last else planning_ends_at(),
        )
    )
    if not booked:
        raise LeaseLost(f"{batch} was paused, cancelled, taken over or restored from a backup.")


def planned(batch: Batch) -> None:
    """Record that nothing is left to plan."""
    _held(batch).update(planned_at=DatabaseNow(), expires_at=None)
    finish_if_done(batch.pk)


def hand_on(batch: Batch) -> None:
    """Let upkeep plan the rest at once, after a temporary error. Its tries start from zero."""
    _held(batch).filter(planned_at=None).update(expires_at=DatabaseNow(), tries=0)


def put_off(batch: Batch) -> bool:
    """Leave planning to a process with newer code, after a delay. Return False after MOST_TRIES."""
    if batch.tries >= MOST_TRIES:
        return False
    later = ends_at(min(2 ** (batch.tries - 1), PLANNING_LEASES))
    return bool(_held(batch).filter(planned_at=None).update(expires_at=later))


def fail(batch: Batch, reason: str) -> None:
    """Record that planning failed; the runs it has planned continue."""
    message = masked(clean_text(reason, max_bytes=MOST_REASON))
    _held(batch).update(
        state=Batch.State.FAILED, reason=message, expires_at=None, finished_at=DatabaseNow()
    )


def break_off(batch: Batch, error: Exception) -> None:
    """Hand the batch to another process after a temporary error; fail it after any other."""
    # After a database error a caller's transaction takes no more statements.
    with suppress(DatabaseError, InterfaceError):
        if is_passing(error):
            hand_on(batch)
        else:
            fail(batch, f"{type(error).__name__}: {error}")


def finish_if_done(batch_id: int, *, announce: Callable[[int], object] = announce_batch) -> bool:
    """Finish the batch if it is planned and no chunk is unfinished. Return whether it did so.

    `announce` is called with its id before the commit.
    """
    if _unfinished(batch_id=batch_id):
        return False
    batch = Batch.objects.filter(pk=batch_id).planned()
    with transaction.atomic(using=settings.DATABASE):
        is_planned = batch.select_for_update().values_list("pk").first() is not None
        # Checked again: its last window may have been planned in between.
        if not is_planned or _unfinished(batch_id=batch_id):
            return False
        batch.update(state=Batch.State.FINISHED, finished_at=DatabaseNow())
        announce(batch_id)
    return True


@prepared
def _unfinished() -> QuerySet[Any]:
    chunks = Chunk.objects.filter(batch_id=Slot("batch_id")).unfinished()
    return chunks.order_by().values_list("pk")[:1]


def pause(batch: Batch, *, reason: str = "") -> bool:
    """Stop planning and releasing the batch. Return whether it was running; its runs continue."""
    # A caller's own queryset is planned to its end: no other process could continue it later.
    running = Batch.objects.filter(pk=batch.pk, state=Batch.State.RUNNING)
    return update_once_committed(running, state=Batch.State.PAUSED, reason=reason)


def resume(batch: Batch) -> bool:
    """Resume a paused batch; upkeep continues its planning. Return whether it was paused."""
    planner = {} if batch.is_given else {"expires_at": DatabaseNow(), "tries": 0}
    paused = Batch.objects.filter(pk=batch.pk, state=Batch.State.PAUSED)

    def work() -> bool:
        resumed = bool(paused.update(state=Batch.State.RUNNING, reason="", **planner))
        if resumed:
            release(batch.node_id)
            finish_if_done(batch.pk)
        return resumed

    return once_committed(work, meanwhile=paused.exists)


def cancel(batch: Batch, *, reason: str = "", within: float = math.inf) -> int:
    """Cancel the batch's runs that have not started, and return how many; see `cancel_all`."""
    chunks = Chunk.objects.filter(batch_id=batch.pk)
    loose = Chunk.objects.none() if batch.is_unfinished else chunks
    chosen = Batch.objects.filter(pk=batch.pk)
    return cancel_all(chosen, chunks, loose=loose, reason=reason, within=within)


def cancel_all(
    chosen: BatchQuerySet[Batch],
    chunks: ChunkQuerySet[Chunk],
    *,
    loose: ChunkQuerySet[Chunk],
    reason: str = "",
    within: float = math.inf,
) -> int:
    """Cancel the chosen batches, and the runs of `chunks` that have not started. Return how many.

    `loose` are those of the chunks that have no unfinished batch. One transaction, which may be
    long, keeps all of the runs from starting; short ones then cancel them. Running ones continue.
    Upkeep cancels what is left after `within` seconds, or if this process dies. Each row gets its
    last result for the same input back, or is pending.
    """

    def begin_cancelling() -> BatchQuerySet[Batch]:
        # By their ids: on MariaDB any other condition waits for rows in open transactions.
        batches = Batch.objects.filter(pk__in=list(chosen.values_list("pk", flat=True)))
        ids = list(loose.unstarted().values_list("pk", flat=True))
        batches.unfinished().update(
            state=Batch.State.CANCELLED,
            reason=reason,
            # None once nothing of it is left.
            expires_at=ends_at(),
            finished_at=DatabaseNow(),
        )
        for begin in range(0, len(ids), MARKED_AT_ONCE):
            some = Chunk.objects.filter(pk__in=ids[begin : begin + MARKED_AT_ONCE]).unstarted()
            some.update(cancelling=[], expires_at=ends_at())
        return batches

    def work() -> int:
        batches = repeated_on_conflict(begin_cancelling)
        crash_point("cancel.batch")
        number = _cancel_rest(batches, chunks, within=within)
        return number if within == math.inf else number + unstarted_runs(chunks)

    return once_committed(work, meanwhile=lambda: unstarted_runs(chunks))


def cancel_moved(batch_id: int) -> int:
    """Cancel runs that moved to another chunk of a cancelled batch. Return how many."""
    cancelled = Batch.objects.filter(pk=batch_id).cancelled()
    chunks = Chunk.objects.filter(batch_id=batch_id)
    return _cancel_rest(cancelled, chunks) if cancelled.exists() else 0


def continue_cancelling(batch_id: int) -> int:
    """Cancel what is left of a cancelled batch, if no process is doing so. Return how many runs."""
    cancelled = Batch.objects.filter(pk=batch_id).cancelled()
    is_ours = cancelled.lapsed().update(expires_at=ends_at())
    chunks = Chunk.objects.filter(batch_id=batch_id)
    return _cancel_rest(cancelled, chunks, within=CANCEL_WITHIN) if is_ours else 0


def cancel_begun() -> int:
    """Cancel the chunks that a process has begun to cancel and left. Return how many runs."""
    begun = Chunk.objects.being_cancelled().filter(expires_at__lte=DatabaseNow())
    return _cancel_rest(Batch.objects.none(), begun, within=CANCEL_WITHIN)


def counts(batch: Batch) -> BatchCounts:
    return batch_counts([batch.pk])[batch.pk]


def _held(batch: Batch) -> Any:
    held = Batch.objects.filter(pk=batch.pk, token=batch.token)
    return held.unfinished() if batch.is_given else held.filter(state=Batch.State.RUNNING)


def _cancel_rest(
    batches: BatchQuerySet[Batch], chunks: ChunkQuerySet[Chunk], *, within: float = math.inf
) -> int:
    number, until = 0, time.monotonic() + within
    for ids in _in_passes(chunks.unstarted().order_by("pk")):
        some = partial(cancelling.cancel_unstarted, Chunk.objects.filter(pk__in=ids))
        number += repeated_on_conflict(some)
        if time.monotonic() >= until:
            break
    left = Chunk.objects.filter(batch=OuterRef("pk")).unfinished()
    unfinished = batches.cancelled().filter(expires_at__isnull=False)
    unfinished.filter(~Exists(left)).update(expires_at=None)
    if time.monotonic() >= until:  # the next round of upkeep goes on
        unfinished.update(expires_at=DatabaseNow())
        chunks.being_cancelled().update(expires_at=DatabaseNow())
    return number


def _in_passes(chunks: QuerySet[Chunk]) -> Iterator[list[int]]:
    """The ids of the chunks, as many at once as one short transaction can cancel."""
    last = 0
    while page := list(chunks.filter(pk__gt=last).values_list("pk", "size")[:CHUNKS_AT_ONCE]):
        runs_up_to = accumulate(size for _, size in page)
        few = [pk for (pk, _), runs in zip(page, runs_up_to, strict=True) if runs <= RUNS_AT_ONCE]
        ids = few or [page[0][0]]
        yield ids
        last = ids[-1]
