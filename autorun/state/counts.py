"""How many runs of a node or a batch are in which state, from the counts that chunks keep."""

import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, or_
from typing import Any

from django.db import connections
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
    When,
)

from autorun.conf import settings
from autorun.models import Batch, Chunk, Node, Run, SpilledTrigger
from autorun.state.clock import DatabaseNow, first_chunk_id_at, from_now
from autorun.state.managers import NOT_WAITING, UNFINISHED, ChunkQuerySet

#: Chunks whose runs wait because their body has raised RetryLater.
IS_POSTPONED = Q(state=Chunk.State.WAITING) & ~Q(postponed_by="")
#: Work that no worker has started or continued for this long counts as stuck.
STUCK_SECONDS = 25.0
#: In place of a chunk's state: the row says that no worker is processing the node's work, has
#: another sum of the caller's, or says about how many runs wait.
WITH_WORK, ANOTHER_SUM, ABOUT = -1, -2, -3
#: If a node has more waiting chunks, pages take the counts of its batches instead.
MOST_SUMMED = 20_000
#: Seconds for which a process remembers which nodes have more.
CROWD_FRESH = 10.0

_crowd: dict[int, tuple[float, bool]] = {}


@dataclass(frozen=True)
class Progress:
    """How many current runs of a node are in each state.

    waiting: planned, not in Celery yet. queued: in Celery. running: in a chunk that a worker
    executes. ignored: left alone until the row's input changes. not_applicable: the same, because
    the body has raised NotApplicable. postponed: waiting, because the body has raised RetryLater.
    """

    succeeded: int = 0
    failed: int = 0
    ignored: int = 0
    not_applicable: int = 0
    waiting: int = 0
    postponed: int = 0
    queued: int = 0
    running: int = 0
    parked: int = 0

    @property
    def unfinished(self) -> int:
        return self.waiting + self.postponed + self.queued + self.running + self.parked

    @property
    def under_way(self) -> int:
        """Runs that are with Celery or its workers."""
        return self.queued + self.running

    @property
    def total(self) -> int:
        finished = self.succeeded + self.failed + self.ignored + self.not_applicable
        return finished + self.unfinished


@dataclass(frozen=True)
class BatchCounts:
    """How many of a batch's runs are in each state; `left` have not finished."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    left: int = 0
    not_applicable: int = 0

    @property
    def finished(self) -> int:
        return self.succeeded + self.failed + self.cancelled + self.not_applicable

    @property
    def total(self) -> int:
        return self.finished + self.left


def progress(node: Node) -> Progress:
    return progress_by_node([node]).get(node.pk, Progress())


def progress_by_node(nodes: Iterable[Node]) -> dict[int, Progress]:
    """The runs of each node by state; one query, so that no chunk is folded in between."""
    return progress_and_stuck(nodes)[0]


def crowded(node_ids: Iterable[int]) -> set[int]:
    """Those of the nodes that have more waiting chunks than a page can sum.

    The process remembers the answer for CROWD_FRESH seconds, unless it was read in a transaction.
    """
    ids, now = set(node_ids), time.monotonic()
    known = {pk: is_crowded for pk, (until, is_crowded) in _crowd.items() if until > now}
    if ids <= known.keys():
        return {pk for pk in ids if known[pk]}
    waiting = Chunk.objects.of(OuterRef("pk")).waiting().order_by().values("pk")
    beyond = Subquery(waiting[MOST_SUMMED : MOST_SUMMED + 1])
    nodes = Node.objects.filter(pk__in=ids).annotate(beyond=beyond).exclude(beyond=None)
    found = set(nodes.values_list("pk", flat=True))
    if not connections[nodes.db].in_atomic_block:
        _crowd.update({pk: (now + CROWD_FRESH, pk in found) for pk in ids})
    return found


def unfolded_chunks(node_ids: Collection[int], crowd: Collection[int]) -> list[Any]:
    """The unfolded chunks of the nodes, without the waiting ones of the crowded nodes."""
    # Named one by one, the nodes let the index find the chunks.
    some = Chunk.objects.filter(node__in=[pk for pk in node_ids if pk not in crowd])
    many = Chunk.objects.filter(node__in=crowd, state__in=NOT_WAITING)
    return [each.unfolded().order_by() for each in ([some, many] if crowd else [some])]


def waiting_by_batch(crowd: Collection[int], mark: int, *, place: int) -> list[Any]:
    """Querysets that tell about how many runs of crowded nodes wait: planned and not yet begun.

    Each row has the node's id, the mark, and six numbers: 0, except for the one at `place`. Those
    of a node add up.
    """
    if not crowd:
        return []
    batches = Batch.objects.unfinished().filter(node__in=crowd)
    begun = Chunk.objects.filter(
        node__in=crowd, state__in=NOT_WAITING, batch__in=batches.values("pk")
    )
    planned = F("planned") - F("folded_succeeded") - F("folded_cancelled")
    rows = ((batches, Sum(planned)), (begun.unfolded(), Sum(F("moved") - F("size"))))
    return [
        each.order_by()
        .values_list("node_id", Value(mark))
        .annotate(**{f"n_{at}": number if at == place else Value(0) for at in range(6)})
        for each, number in rows
    ]


def left_for_long() -> Q:
    """The condition that a chunk has long been queued, or that its lease has long ended."""
    # Chunks whose queue has a busy worker do not count: they wait for it.
    long_ago = from_now(-STUCK_SECONDS)
    is_queued = Q(state=Chunk.State.QUEUED, published_at__lte=long_ago)
    is_left = is_queued | Q(state=Chunk.State.RUNNING, expires_at__lte=long_ago)
    is_planning = _planning() & Q(queue=settings.QUEUE or "")
    return is_left & ~is_planning & ~Q(_executing(OuterRef("queue")))


def unplanned_for_long() -> Q:
    """The condition that the planning of a batch has long stopped while no worker is busy."""
    is_left = Q(state=Batch.State.RUNNING, planned_at=None)
    is_left &= Q(expires_at__lte=from_now(-STUCK_SECONDS))
    return is_left & ~_planning() & ~Q(_executing(Value(settings.QUEUE or "")))


def _executing(queue: Any) -> Exists:
    """Whether a worker executes a chunk of that queue."""
    return Exists(Chunk.objects.running().filter(queue=queue, expires_at__gt=DatabaseNow()))


def _planning() -> Q:
    """Whether a worker plans a batch, or saved rows."""
    leased = {"expires_at__gt": DatabaseNow()}
    # The messages of saved rows have no lease, but leave chunks of no batch.
    recent = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=STUCK_SECONDS)
    traces = (
        Batch.objects.unplanned().filter(**leased),
        SpilledTrigger.objects.filter(tries__gt=0, **leased),
        Chunk.objects.filter(pk__gte=first_chunk_id_at(recent), batch=None),
    )
    return reduce(or_, map(Q, map(Exists, traces)))


def _with_work(node_ids: list[int]) -> tuple[Any, Any]:
    """Each node with work that no worker is processing, from its chunks and its batches."""
    # The columns are as many as those of `progress_and_stuck`, with WITH_WORK as the state.
    chunks: Any = Chunk.objects.filter(left_for_long(), node__in=node_ids).order_by()
    batches: Any = Batch.objects.filter(unplanned_for_long(), node__in=node_ids).order_by()
    zeros = {f"zero_{place}": Value(0) for place in range(5)}
    started = ("node_id", Value(WITH_WORK))
    return (
        chunks.values_list(*started).annotate(number=Count("pk"), **zeros),
        batches.values_list(*started, Value(0), *zeros.values()),
    )


def progress_and_stuck(
    nodes: Iterable[Node],
    others: Iterable[Any] = (),
    add_other: Callable[[int, Sequence[int]], object] = lambda _pk, _numbers: None,
    crowd: Collection[int] = (),
) -> tuple[dict[int, Progress], set[int]]:
    """`progress_by_node`, and the nodes with work that no worker has been at for long; one query.

    `add_other` gets the rows of `others`, which have the same columns and ANOTHER_SUM as state.
    The number of waiting runs of the nodes in `crowd` is an estimate.
    """
    ids = [node.pk for node in nodes]
    crowd = [pk for pk in ids if pk in crowd]
    first, *rest = map(_open_counts, unfolded_chunks(ids, crowd))
    folded = ("folded_succeeded", "folded_failed", "folded_ignored", "folded_not_applicable")
    folded_counts = Node.objects.filter(pk__in=ids).values_list(
        "pk", Value(Chunk.State.FINISHED.value), *folded, Value(0), Value(0)
    )
    sums: dict[int, Counter[str]] = {}
    stuck: set[int] = set()
    more = (folded_counts.order_by(), *_with_work(ids), *others)
    about = waiting_by_batch(crowd, ABOUT, place=5)
    for pk, state, *numbers in first.union(*rest, *about, *more, all=True):
        if state == WITH_WORK:
            stuck.add(pk)
        elif state == ANOTHER_SUM:
            add_other(pk, numbers)
        elif state == ABOUT:
            sums.setdefault(pk, Counter())["waiting"] += int(numbers[-1] or 0)
        else:
            sums.setdefault(pk, Counter()).update(_by_state(state, *map(int, numbers)))
    for pk in sums.keys() & crowd:
        sums[pk]["waiting"] = max(MOST_SUMMED, sums[pk]["waiting"])
    return {pk: Progress(**counts) for pk, counts in sums.items()}, stuck


def _open_counts(chunks: QuerySet[Chunk]) -> QuerySet[Chunk, Any]:
    return chunks.values_list("node_id", "state").annotate(
        n_succeeded=Sum(F("succeeded") - F("superseded_succeeded")),
        n_failed=Sum(F("failed") - F("superseded_failed")),
        n_cancelled=Sum(F("cancelled") - F("superseded_cancelled")),
        n_not_applicable=Sum(F("not_applicable") - F("superseded_not_applicable")),
        n_postponed=Sum(Case(When(IS_POSTPONED, then=Chunk.RUNS_LEFT), default=0)),
        n_left=Sum(Chunk.RUNS_LEFT),
    )


def _by_state(
    state: int, good: int, bad: int, cancelled: int, apart: int, postponed: int, left: int
) -> dict[str, int]:
    """The runs of a node's chunks in that state, by their own states."""
    found = {"succeeded": good, "failed": bad, "ignored": cancelled - apart}
    found |= {"not_applicable": apart, "postponed": postponed}
    if state in _UNFINISHED:
        found[_UNFINISHED[state]] = left - postponed
    return found


#: The state of a chunk's unfinished runs, by the state of the chunk.
_UNFINISHED: dict[int, str] = {state: state.name.lower() for state in UNFINISHED}


def unstarted_runs(chunks: ChunkQuerySet[Chunk]) -> int:
    """The unfinished runs in those of the chunks that no worker executes."""
    return chunks.unstarted().aggregate(left=Sum(Chunk.RUNS_LEFT))["left"] or 0


def batch_counts(batch_ids: Iterable[int], about: Collection[int] = ()) -> dict[int, BatchCounts]:
    """The runs of each batch by state; one query, so that no chunk is folded in between.

    For the batches in `about`, the runs left are those planned less those finished.
    """
    ids = list(batch_ids)
    # No join: so PostgreSQL sums a million chunks in parallel.
    exact: Any = Chunk.objects.filter(batch_id__in=[pk for pk in ids if pk not in about])
    nodes = Batch.objects.filter(pk__in=about).values("node")
    begun: Any = Chunk.objects.filter(node__in=nodes, batch__in=about, state__in=NOT_WAITING)
    columns = ("succeeded", "failed", "cancelled", "not_applicable")
    folded = ("folded_succeeded", Value(0), "folded_cancelled", "folded_not_applicable")
    planned = Case(When(pk__in=about, then="planned"), default=0)
    counted = [
        Batch.objects.filter(pk__in=ids).order_by().values_list("pk", *folded, planned),
        *(
            chunks.unfolded()
            .order_by()
            .values_list("batch_id")
            .annotate(*map(Sum, columns), n_left=left)
            for chunks, left in ((exact, Sum(Chunk.RUNS_LEFT)), (begun, Value(0)))
        ),
    ]
    first, *others = counted if about else counted[:2]
    sums: dict[int, Sequence[int]] = dict.fromkeys(ids, (0,) * 5)
    for pk, *counts in first.union(*others, all=True):
        sums[pk] = [*map(add, sums[pk], map(int, counts))]
    return {
        pk: BatchCounts(
            good,
            bad,
            cancelled - apart,
            max(0, left - good - bad - cancelled) if pk in about else left,
            apart,
        )
        for pk, (good, bad, cancelled, apart, left) in sums.items()
    }


def superseded(statuses: Iterable[int]) -> Counter[str]:
    """How many superseded runs with these statuses there are, by the column that counts them."""
    # A pending run is counted when its own chunk cancels it. A worker of a newer version may have
    # recorded a status that is not known here.
    counted: Counter[str] = Counter()
    for status in statuses:
        if status == Run.Status.NOT_APPLICABLE:
            counted.update(("superseded_cancelled", "superseded_not_applicable"))
        elif status in Run.Status and status != Run.Status.PENDING:
            counted[f"superseded_{Run.Status(status).name.lower()}"] += 1
    return counted
