"""Pruning of old history: superseded runs, and the chunks and batches that have none left."""

import datetime as dt
from functools import partial

from django.db.models import Exists, OuterRef, Q

from autorun.conf import settings
from autorun.models import Batch, Chunk, Failure, Run
from autorun.state.clock import first_chunk_id_at, from_now
from autorun.state.managers import RETIRED
from autorun.state.transactions import repeated_on_conflict
from autorun.upkeep.folding import drop_empty

#: Runs deleted in one transaction.
DELETED_AT_ONCE = 2_000
#: Runs deleted in one call. A caller that reaches it calls again.
MOST_RUNS = 50 * DELETED_AT_ONCE
#: Runs of the chunks made after the cutoff that are read for the highest id before it.
FEW_RUNS = 1_000


def prune(*, at_most: int = MOST_RUNS) -> int:
    """Delete runs that are older than RETENTION and no longer current. Return how many.

    Current runs are the record of what is done, and stay at any age. So does the last success of a
    row whose current run has not succeeded, because it has the row's only outputs. Nothing stays of
    a row that is deleted.
    """
    if settings.RETENTION is None:
        return 0
    seconds = settings.RETENTION.total_seconds()
    cutoff = from_now(-seconds)
    deleted = _prune_runs(settings.RETENTION, at_most=at_most)
    if deleted:
        drop_empty(quiet=seconds)
    chunks = Chunk.objects.filter(batch=OuterRef("pk"))
    empty = Batch.objects.filter(~Exists(chunks), finished_at__lt=cutoff)
    ids = list(empty.values_list("pk", flat=True)[:DELETED_AT_ONCE])
    if ids:
        Batch.objects.filter(pk__in=ids).delete()
    return deleted


def _prune_runs(retention: dt.timedelta, *, at_most: int) -> int:
    cutoff = from_now(-retention.total_seconds())
    old = Run.objects.filter(is_current=None, finished_at__lt=cutoff)
    old = old.exclude(status=Run.Status.PENDING).exclude(_is_last_success()).order_by("pk")
    # Runs of later chunks are not read: there may be many superseded ones. A run that has moved to
    # one of them is deleted later.
    first_later = first_chunk_id_at(dt.datetime.now(dt.UTC) - retention)
    later = Run.objects.filter(chunk_id__gte=first_later).order_by("chunk_id")
    some = list(later.values_list("pk", flat=True)[:FEW_RUNS])
    if some:
        old = old.filter(pk__lte=max(some))
    deleted, last = 0, 0
    while deleted < at_most:
        found = dict(old.filter(pk__gt=last).values_list("pk", "chunk_id")[:DELETED_AT_ONCE])
        if not found:
            break
        repeated_on_conflict(partial(_delete, found))
        deleted, last = deleted + len(found), max(found)
    return deleted


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
