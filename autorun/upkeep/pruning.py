"""Pruning of old history: superseded runs, and the chunks and batches that have none left."""

from django.db.models import Exists, Expression, Max, Min, OuterRef, Q, QuerySet

from autorun.conf import settings
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.state.clock import from_now
from autorun.state.managers import RETIRED
from autorun.state.transactions import repeated_on_conflict
from autorun.upkeep.folding import drop_empty

#: Runs deleted in one transaction.
DELETED_AT_ONCE = 2_000
#: Runs deleted in one call. A caller that reaches it calls again.
MOST_RUNS = 50 * DELETED_AT_ONCE
#: Ids of runs that one statement scans: MariaDB has no index of superseded runs alone.
WINDOW = 100_000


def prune(*, at_most: int = MOST_RUNS) -> int:
    """Delete runs that are older than RETENTION and no longer current; how many.

    Current runs are the record of what is done, and stay at any age. So does the last success of a
    row whose current run has not succeeded: it has the only outputs there are. Nothing stays of a
    row that is deleted.
    """
    if settings.RETENTION is None:
        return 0
    seconds = settings.RETENTION.total_seconds()
    cutoff = from_now(-seconds)
    deleted = _prune_runs(cutoff, at_most=at_most)
    for node_id in Node.objects.values_list("pk", flat=True):
        drop_empty(node_id, quiet=seconds)
    chunks = Chunk.objects.filter(batch=OuterRef("pk"))
    empty = Batch.objects.filter(~Exists(chunks), finished_at__lt=cutoff)
    ids = list(empty.values_list("pk", flat=True)[:DELETED_AT_ONCE])
    Batch.objects.filter(pk__in=ids).delete()
    return deleted


def _prune_runs(cutoff: Expression, *, at_most: int) -> int:
    old = Run.objects.filter(is_current=None, finished_at__lt=cutoff)
    old = old.exclude(status=Run.Status.PENDING).exclude(_is_last_success()).order_by("pk")
    ids = Run.objects.aggregate(first=Min("pk"), last=Max("pk"))
    if ids["first"] is None:
        return 0
    deleted = 0
    for begin in range(ids["first"], ids["last"] + 1, WINDOW):
        within = old.filter(pk__gte=begin, pk__lt=begin + WINDOW)
        number = DELETED_AT_ONCE
        while number == DELETED_AT_ONCE and deleted < at_most:
            number = _delete_some(within)
            deleted += number
        if deleted >= at_most:
            break
    return deleted


def _delete_some(runs: QuerySet[Run]) -> int:
    found = dict(runs.values_list("pk", "chunk_id")[:DELETED_AT_ONCE])
    if found:
        repeated_on_conflict(lambda: _delete(found))
    return len(found)


def _is_last_success() -> Q:
    """The condition that a superseded run is the last success of its row."""
    row = {name: OuterRef(name) for name in ("node", "object_id", "object_key")}
    later = Run.objects.succeeded().filter(Q(is_current=True) | Q(pk__gt=OuterRef("pk")), **row)
    return Q(~Exists(later), ~Q(fingerprint=RETIRED), status=Run.Status.SUCCEEDED)


def _delete(chunk_of: dict[int, int]) -> None:
    # Locked, as a cancelled run may be about to make an earlier one current again.
    runs = Run.objects.filter(pk__in=chunk_of, is_current=None).select_for_update().order_by("pk")
    ids = list(runs.values_list("pk", flat=True))
    Failure.objects.filter(run_id__in=ids).delete()
    # Only failures refer to a run: a raw delete saves a search for other references.
    Run.objects.filter(pk__in=ids)._raw_delete(settings.DATABASE)
    left = Run.objects.filter(chunk_id=OuterRef("pk"))
    counted = Chunk.objects.filter(pk__in=set(chunk_of.values()), is_folded__in=[True])
    counted.filter(~Exists(left))._raw_delete(settings.DATABASE)
