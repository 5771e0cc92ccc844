"""Counts of old chunks, kept in one row: progress() need not add up every chunk there ever was.

A chunk that has ended without a failure is never written again, so what came of its runs can be
added to the counts of its node, once, and the chunk be left out of every later sum. Chunks with
failures stay as they are: their runs may yet be retried, or ignored.
"""

from __future__ import annotations

from django.db.models import F, Q, Sum

from autorun import nodes
from autorun.clock import from_now
from autorun.conf import settings
from autorun.models import Chunk, Node
from autorun.transactions import repeated_on_conflict

#: Chunks folded in one transaction, and those of a node that are not worth one.
AT_ONCE = 5_000
FEW = 500
#: Seconds since its end for which a chunk is left alone: its worker may be asking whether its last
#: commit arrived.
QUIET = 600


def fold_everywhere(*, at_most: int = 20 * AT_ONCE) -> int:
    """Fold the ended chunks of every node that has more than a few; how many."""
    return sum(fold(pk, at_most=at_most) for pk in Node.objects.values_list("pk", flat=True))


def fold(node_id: int, *, at_most: int = 20 * AT_ONCE, quiet: float = QUIET) -> int:
    """Add the counts of the node's ended chunks to the node's own; how many chunks."""
    folded = 0
    while folded < at_most:
        number = repeated_on_conflict(
            lambda: _fold_some(node_id, quiet=quiet), using=settings.DATABASE
        )
        folded += number
        if number < AT_ONCE:
            break
    return folded


def _fold_some(node_id: int, *, quiet: float) -> int:
    nodes.lock(node_id)
    ended = Chunk.objects.filter(
        Q(finished_at=None) | Q(finished_at__lte=from_now(-quiet)),
        node_id=node_id,
        is_folded__in=[False],  # `= False` would be written as NOT, and use no index
        state=Chunk.State.FINISHED,
        failed=0,
    )
    ids = list(ended.values_list("pk", flat=True)[:AT_ONCE])
    if len(ids) < FEW:
        return 0
    chunks = Chunk.objects.filter(pk__in=ids)
    counts = chunks.aggregate(
        n_succeeded=Sum(F("succeeded") - F("superseded_succeeded")),
        n_failed=Sum(-F("superseded_failed")),
        n_ignored=Sum(F("cancelled") - F("superseded_cancelled")),
    )
    chunks.update(is_folded=True)
    Node.objects.filter(pk=node_id).update(
        folded_succeeded=F("folded_succeeded") + counts["n_succeeded"],
        folded_failed=F("folded_failed") + counts["n_failed"],
        folded_ignored=F("folded_ignored") + counts["n_ignored"],
    )
    # All of their runs went on in others: no run will ever be pruned that leads to them.
    chunks.filter(size=F("moved"), batch=None)._raw_delete(settings.DATABASE)
    return len(ids)
