"""Folding: the counts of old chunks are added to their node's and batch's totals, once.

So progress() need not sum every chunk that ever was. A chunk that finished without a failure never
changes again. Chunks with failures are not folded: their runs may still be retried or ignored.
"""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

from django.db import IntegrityError
from django.db.models import Exists, F, OuterRef, Q

from autorun.conf import settings
from autorun.models import Batch, Chunk, Node, Run
from autorun.state import pulses
from autorun.state.clock import from_now
from autorun.state.managers import ChunkQuerySet
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


def drop_empty(node_id: int, *, quiet: float) -> int:
    """Fold and delete chunks whose runs have all been pruned or moved; how many.

    One with failures stays for as long as its batch: a batch does not sum up failures.
    """
    empty = _ended(node_id, quiet=quiet).filter(~Exists(Run.objects.filter(chunk=OuterRef("pk"))))
    runs = Run.objects.filter(chunk__batch=OuterRef("batch"))
    goes_too = Q(~Exists(runs), batch__finished_at__lte=from_now(-quiet))
    empty = empty.filter(Q(failed=0) | Q(batch=None) | goes_too)

    def drop() -> int:
        pulses.hold(f"fold:{node_id}")
        found = list(empty[:FOLDED_AT_ONCE])
        _count_in(node_id, found)._raw_delete(settings.DATABASE)
        return len(found)

    return repeated_on_conflict(drop, holds_node=True) if empty.exists() else 0


def _ended(node_id: int, *, quiet: float) -> ChunkQuerySet[Chunk]:
    """The node's chunks that are not folded, and finished `quiet` seconds ago or longer."""
    is_quiet = Q(finished_at=None) | Q(finished_at__lte=from_now(-quiet))
    return Chunk.objects.of(node_id).unfolded().finished().filter(is_quiet)


def _fold_some(node_id: int, *, quiet: float) -> int:
    pulses.hold(f"fold:{node_id}")
    # Not locked: no process writes to them any more, and folding holds the lock of the node.
    found = list(_ended(node_id, quiet=quiet).filter(failed=0)[:FOLDED_AT_ONCE])
    if len(found) < FEW:
        return 0
    # All of their runs moved to other chunks, so pruning will never find them by a run.
    _count_in(node_id, found).filter(size=F("moved"))._raw_delete(settings.DATABASE)
    return len(found)


def _count_in(node_id: int, found: Sequence[Chunk]) -> ChunkQuerySet[Chunk]:
    """Add the chunks' counts to the node's and the batches'; returns the chunks."""
    chunks = Chunk.objects.filter(pk__in=[chunk.pk for chunk in found])
    if chunks.unfolded().update(is_folded=True) != len(found):
        raise IntegrityError("Another process folds them: an old worker, which locks otherwise.")
    _count_in_node(node_id, found)
    _count_in_batches(found)
    return chunks


def _count_in_node(node_id: int, chunks: Iterable[Chunk]) -> None:
    node = Node.objects.filter(pk=node_id)
    hours = Counter(node.values_list("folded_hours", flat=True).get())
    sums: Counter[str] = Counter()
    for chunk in chunks:
        sums["succeeded"] += chunk.succeeded - chunk.superseded_succeeded
        sums["failed"] += chunk.failed - chunk.superseded_failed
        sums["ignored"] += chunk.cancelled - chunk.superseded_cancelled
        sums["not_applicable"] += chunk.not_applicable - chunk.superseded_not_applicable
        if chunk.succeeded and chunk.finished_at is not None:
            hours[str(hour_of(chunk.finished_at))] += chunk.succeeded
    node.update(
        **{f"folded_{name}": F(f"folded_{name}") + number for name, number in sums.items()},
        folded_hours=dict(sorted(hours.items(), key=lambda each: int(each[0]))[-HOURS:]),
    )


def _count_in_batches(chunks: Iterable[Chunk]) -> None:
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    for chunk in chunks:
        if chunk.batch_id is not None:
            for name in ("succeeded", "cancelled", "not_applicable"):
                sums[chunk.batch_id][f"folded_{name}"] += getattr(chunk, name)
    for batch_id in sorted(sums):
        added = {name: F(name) + number for name, number in sums[batch_id].items()}
        Batch.objects.filter(pk=batch_id).update(**added)
