"""How many runs of a node or a batch are in which state, from the counts that chunks keep."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any

from django.db.models import F, Sum, Value

from autorun.models import Batch, Chunk, Node
from autorun.state.managers import UNFINISHED, ChunkQuerySet


@dataclass(frozen=True)
class Progress:
    """How many current runs of a node are in each state.

    waiting: planned, not in Celery yet. queued: in Celery. running: in a chunk that a worker
    executes. ignored: left alone until the row's input changes.
    """

    succeeded: int = 0
    failed: int = 0
    ignored: int = 0
    waiting: int = 0
    queued: int = 0
    running: int = 0
    parked: int = 0

    @property
    def unfinished(self) -> int:
        return self.waiting + self.queued + self.running + self.parked

    @property
    def under_way(self) -> int:
        """Runs that are with Celery or its workers."""
        return self.queued + self.running

    @property
    def total(self) -> int:
        return self.succeeded + self.failed + self.ignored + self.unfinished


@dataclass(frozen=True)
class BatchCounts:
    """How many of a batch's runs are in each state; `left` have not finished."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    left: int = 0

    @property
    def finished(self) -> int:
        return self.succeeded + self.failed + self.cancelled

    @property
    def total(self) -> int:
        return self.finished + self.left


def progress(node: Node) -> Progress:
    return progress_by_node([node]).get(node.pk, Progress())


def progress_by_node(nodes: Iterable[Node]) -> dict[int, Progress]:
    """The runs of each node by state; one query, so that no chunk is folded in between."""
    ids = [node.pk for node in nodes]
    chunks: Any = Chunk.objects.filter(node_id__in=ids).unfolded()
    open_counts = chunks.values_list("node_id", "state").annotate(
        n_succeeded=Sum(F("succeeded") - F("superseded_succeeded")),
        n_failed=Sum(F("failed") - F("superseded_failed")),
        n_ignored=Sum(F("cancelled") - F("superseded_cancelled")),
        n_left=Sum(Chunk.runs_left()),
    )
    folded = ("folded_succeeded", "folded_failed", "folded_ignored")
    folded_counts = Node.objects.filter(pk__in=ids).values_list(
        "pk", Value(Chunk.State.FINISHED.value), *folded, Value(0)
    )
    sums: dict[int, Counter[str]] = {}
    for pk, state, *counts in open_counts.order_by().union(folded_counts.order_by(), all=True):
        names = ("succeeded", "failed", "ignored", _UNFINISHED.get(state))
        of_node = sums.setdefault(pk, Counter())
        of_node.update({name: int(n) for name, n in zip(names, counts, strict=True) if name})
    return {pk: Progress(**counts) for pk, counts in sums.items()}


#: The state of a chunk's unfinished runs, by the state of the chunk.
_UNFINISHED = {state: state.name.lower() for state in UNFINISHED}


def unstarted_runs(chunks: ChunkQuerySet[Chunk]) -> int:
    """The unfinished runs in those of the chunks that no worker executes."""
    return chunks.unstarted().aggregate(left=Sum(Chunk.runs_left()))["left"] or 0


def batch_counts(batch_ids: Iterable[int]) -> dict[int, BatchCounts]:
    """The runs of each batch by state; one query, so that no chunk is folded in between."""
    ids = list(batch_ids)
    # No join: so PostgreSQL sums a million chunks in parallel.
    chunks: Any = Chunk.objects.filter(batch_id__in=ids).unfolded()
    open_counts = chunks.values_list("batch_id").annotate(
        Sum("succeeded"), Sum("failed"), Sum("cancelled"), n_left=Sum(Chunk.runs_left())
    )
    folded_counts = Batch.objects.filter(pk__in=ids).values_list(
        "pk", "folded_succeeded", Value(0), "folded_cancelled", Value(0)
    )
    sums: dict[int, Sequence[int]] = {}
    for pk, *counts in open_counts.order_by().union(folded_counts.order_by(), all=True):
        sums[pk] = [*map(add, sums.get(pk, (0,) * 4), map(int, counts))]
    return {pk: BatchCounts(*counts) for pk, counts in sums.items()}
