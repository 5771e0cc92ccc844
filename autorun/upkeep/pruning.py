"""Old history: superseded and cancelled runs, their chunks, and batches that planned nothing."""

from __future__ import annotations

from django.db.models import Exists, Max, Min, OuterRef, QuerySet

from autorun.conf import settings
from autorun.models import Batch, Chunk, Failure, Run
from autorun.state.clock import from_now
from autorun.state.transactions import repeated_on_conflict

#: Runs deleted in one transaction.
AT_ONCE = 2_000
#: Runs that one call deletes. Whoever reaches it has more to delete.
MOST_RUNS = 50 * AT_ONCE
#: Ids of runs that one statement looks through. MariaDB has no index of superseded runs alone.
WINDOW = 100_000


def prune(*, at_most: int = MOST_RUNS) -> int:
    """Delete what is older than RETENTION and no longer current; how many runs.

    Current runs are the record of what is done, and stay whatever their age.
    """
    if settings.RETENTION is None:
        return 0
    cutoff = from_now(-settings.RETENTION.total_seconds())
    empty = Batch.objects.filter(finished_at__lt=cutoff, planned=0)
    Batch.objects.filter(pk__in=list(empty.values_list("pk", flat=True)[:AT_ONCE])).delete()
    old = Run.objects.filter(is_current=None, finished_at__lt=cutoff)
    old = old.exclude(status=Run.Status.PENDING).order_by("pk")
    ids = Run.objects.aggregate(first=Min("pk"), last=Max("pk"))
    if ids["first"] is None:
        return 0
    deleted = 0
    for begin in range(ids["first"], ids["last"] + 1, WINDOW):
        within = old.filter(pk__gte=begin, pk__lt=begin + WINDOW)
        number = AT_ONCE
        while number == AT_ONCE and deleted < at_most:
            number = _delete_some(within)
            deleted += number
        if deleted >= at_most:
            break
    return deleted


def _delete_some(runs: QuerySet[Run]) -> int:
    found = dict(runs.values_list("pk", "chunk_id")[:AT_ONCE])
    if found:
        repeated_on_conflict(lambda: _delete(found), using=settings.DATABASE)
    return len(found)


def _delete(chunk_of: dict[int, int]) -> None:
    """Delete these runs, and chunks that have been counted and are about nothing any more."""
    Failure.objects.filter(run_id__in=chunk_of).delete()
    # Nothing refers to a run but its failures: a raw delete spares looking for what might.
    Run.objects.filter(pk__in=chunk_of)._raw_delete(settings.DATABASE)
    left = Run.objects.filter(chunk_id=OuterRef("pk"))
    counted = Chunk.objects.filter(pk__in=set(chunk_of.values()), is_folded__in=[True])
    counted.filter(~Exists(left))._raw_delete(settings.DATABASE)
