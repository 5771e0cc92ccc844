"""Folding: the counts of old chunks are added to their node's and batch's totals, once.

So progress() need not sum every chunk that ever was. A chunk that finished without a failure never
changes again. Chunks with failures are not folded: their runs may still be retried or ignored.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from functools import partial

from django.db import IntegrityError
from django.db.models import F, Q

from autorun.conf import settings
from autorun.declare import nodes
from autorun.models import Batch, Chunk, Node
from autorun.state.clock import from_now
from autorun.state.transactions import repeated_on_conflict, sum_of_each

#: Chunks folded in one transaction, and how few of a node's are not worth one.
FOLDED_AT_ONCE = 5_000
FEW = 500
#: Seconds after its end before a chunk is folded: its worker may be finding out whether its last
#: commit arrived.
SETTLED_AFTER = 600
#: Hours that a node remembers, one more than pages show: the first is incomplete.
HOURS = 25


def fold_everywhere(*, at_most: int = 20 * FOLDED_AT_ONCE) -> int:
    """Fold the finished chunks of every node with more than a few; how many."""
    ids = Node.objects.values_list("pk", flat=True)
    return sum_of_each(partial(fold, at_most=at_most), ids, name="Folding: node")


def fold(node_id: int, *, at_most: int = 20 * FOLDED_AT_ONCE, quiet: float = SETTLED_AFTER) -> int:
    """Add the counts of the node's finished chunks to its own; how many chunks."""
    folded = 0
    while folded < at_most:
        some = partial(_fold_some, node_id, quiet=quiet)
        number = repeated_on_conflict(some, holds_node=True)
        folded += number
        if number < FOLDED_AT_ONCE:
            break
    return folded


def hour_of(at: dt.datetime) -> int:
    """The hour of a time, as hours since 1970."""
    return int(at.timestamp() // 3600)


def _fold_some(node_id: int, *, quiet: float) -> int:
    nodes.lock(node_id)
    is_quiet = Q(finished_at=None) | Q(finished_at__lte=from_now(-quiet))
    ended = Chunk.objects.of(node_id).unfolded().finished().filter(is_quiet, failed=0)
    counts = ("succeeded", "cancelled", "superseded_succeeded", "superseded_failed")
    read = ("batch_id", "finished_at", *counts, "superseded_cancelled")
    # Not locked: no process writes to them any more, and folding holds the lock of the node.
    found = list(ended.only(*read)[:FOLDED_AT_ONCE])
    if len(found) < FEW:
        return 0
    chunks = Chunk.objects.filter(pk__in=[chunk.pk for chunk in found])
    if chunks.unfolded().update(is_folded=True) != len(found):
        raise IntegrityError("Another process folds them: an old worker, which locks otherwise.")
    _count_in_node(node_id, found)
    _count_in_batches(found)
    # All of their runs moved to other chunks, so pruning will never find them by a run.
    chunks.filter(size=F("moved"))._raw_delete(settings.DATABASE)
    return len(found)


def _count_in_node(node_id: int, chunks: Iterable[Chunk]) -> None:
    node = Node.objects.filter(pk=node_id)
    hours = Counter(node.values_list("folded_hours", flat=True).get())
    sums: Counter[str] = Counter()
    for chunk in chunks:
        sums["succeeded"] += chunk.succeeded - chunk.superseded_succeeded
        sums["failed"] -= chunk.superseded_failed
        sums["ignored"] += chunk.cancelled - chunk.superseded_cancelled
        if chunk.succeeded and chunk.finished_at is not None:
            hours[str(hour_of(chunk.finished_at))] += chunk.succeeded
    node.update(
        folded_succeeded=F("folded_succeeded") + sums["succeeded"],
        folded_failed=F("folded_failed") + sums["failed"],
        folded_ignored=F("folded_ignored") + sums["ignored"],
        folded_hours=dict(sorted(hours.items(), key=lambda each: int(each[0]))[-HOURS:]),
    )


def _count_in_batches(chunks: Iterable[Chunk]) -> None:
    succeeded, cancelled = Counter[int](), Counter[int]()
    for chunk in chunks:
        if chunk.batch_id is not None:
            succeeded[chunk.batch_id] += chunk.succeeded
            cancelled[chunk.batch_id] += chunk.cancelled
    for batch_id in sorted(succeeded):
        Batch.objects.filter(pk=batch_id).update(
            folded_succeeded=F("folded_succeeded") + succeeded[batch_id],
            folded_cancelled=F("folded_cancelled") + cancelled[batch_id],
        )
