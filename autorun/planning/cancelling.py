"""Cancel runs that have not started, and give their rows' last results back their place.

A run that is requested again supersedes the row's last result. If it is cancelled, the row's last
result for the same input, or the run that is still executing, is current again.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from django.db.models import F, Max, OuterRef, QuerySet, Subquery

from autorun.models import Chunk, Run
from autorun.state.clock import DatabaseNow
from autorun.state.counts import superseded
from autorun.state.managers import ChunkQuerySet
from autorun.state.probes import crash_point


def cancel_unstarted(
    chunks: ChunkQuerySet[Chunk], *, run_ids: Collection[int] | None = None
) -> int:
    """Cancel the runs of the chunks that have not started, only those of `run_ids` if given.

    Returns how many. To be called in a transaction.
    """
    node_of, number = _cancel(chunks.unstarted(), run_ids)
    finish_emptied(node_of)
    return number


def finish_emptied(chunk_ids: Iterable[int]) -> None:
    """Finish those of the chunks, which no worker executes, that have no run left."""
    emptied = Chunk.objects.filter(
        pk__in=list(chunk_ids), size=F("succeeded") + F("failed") + F("cancelled") + F("moved")
    )
    # A message that has been sent finds another token and does nothing.
    emptied.update(
        state=Chunk.State.FINISHED, token=F("token") + 1, finished_at=DatabaseNow(), expires_at=None
    )


def cancel_started(chunks: ChunkQuerySet[Chunk], *, run_ids: Collection[int]) -> int:
    """Cancel runs of running chunks, whose workers no longer execute them. Return how many."""
    _, number = _cancel(chunks, run_ids)
    return number


def ask_running(chunks: ChunkQuerySet[Chunk], *, run_ids: Collection[int] | None = None) -> int:
    """Ask the workers of running chunks to cancel their runs, only those of `run_ids` if given.

    Returns the number of runs. To be called in a transaction.
    """
    locked = chunks.running().select_for_update().order_by("pk")
    asked = dict(locked.values_list("pk", "cancelling"))
    runs = Run.objects.current().pending().filter(chunk_id__in=list(asked))
    if run_ids is not None:
        runs = runs.filter(pk__in=run_ids)
    found: dict[int, list[int]] = defaultdict(list)
    for run_id, chunk_id in runs.values_list("pk", "chunk_id"):
        found[chunk_id].append(run_id)
    for chunk_id, of_chunk in found.items():
        wanted = sorted({*of_chunk, *(asked[chunk_id] or ())})
        Chunk.objects.filter(pk=chunk_id).update(cancelling=wanted)
    return sum(map(len, found.values()))


def _cancel(
    chunks: ChunkQuerySet[Chunk], run_ids: Collection[int] | None
) -> tuple[Mapping[int, int], int]:
    """Cancel pending runs of the chunks. Return the chunks with their nodes, and how many runs."""
    # Locked in order, and before their runs, as a worker does that finishes one.
    locked = chunks.select_for_update().order_by("pk")
    node_of = dict(locked.values_list("pk", "node_id"))
    runs = Run.objects.pending().filter(chunk_id__in=list(node_of))
    if run_ids is not None:
        runs = runs.filter(pk__in=run_ids)
    counts = count_by_chunk(runs)
    earlier = earlier_results(runs)
    number = runs.update(status=Run.Status.CANCELLED, is_current=None, finished_at=DatabaseNow())
    crash_point("cancel.runs")
    booked = make_current(earlier)
    crash_point("cancel.undone")
    for amount, chunk_ids in counts.items():
        Chunk.objects.filter(pk__in=chunk_ids).update(
            cancelled=F("cancelled") + amount,
            superseded_cancelled=F("superseded_cancelled") + amount,
        )
    # Any chunk of the node may count them: only the sum over all of its chunks has a meaning.
    for node_id, chunk_id in {node_id: pk for pk, node_id in node_of.items()}.items():
        if names := booked.get(node_id):
            again = {name: F(name) - amount for name, amount in names.items()}
            Chunk.objects.filter(pk=chunk_id).update(**again)
    return node_of, number


def earlier_results(runs: QuerySet[Run]) -> list[int]:
    """The runs that are current again if these locked runs are cancelled.

    For each that is current: the superseded run of its row that a worker is still executing, else
    the last that has succeeded, was not applicable, or failed with no attempts left, for the same
    input.
    """
    same = ("node", "object_id", "object_key", "fingerprint")
    ended = Run.objects.filter(
        is_current=None,
        status__in=(Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.NOT_APPLICABLE),
        **{name: OuterRef(name) for name in same},
    )
    row = {name: OuterRef(name) for name in same[:3]}
    executed = Run.objects.pending().filter(
        is_current=None, chunk__state=Chunk.State.RUNNING, **row
    )
    # Looked up for each row: as a join, PostgreSQL may read all chunks first. Grouped: for a MAX
    # alone, it may walk down the primary key through all runs.
    newest = {
        name: Subquery(found.order_by().values("node").annotate(last=Max("pk")).values("last"))
        for name, found in (("earlier", ended), ("executed", executed))
    }
    pairs = runs.filter(is_current=True).annotate(**newest).values_list(*newest)
    return [pk for earlier, executed in pairs if (pk := executed or earlier) is not None]


def make_current(run_ids: Collection[int]) -> Mapping[int, Mapping[str, int]]:
    """Make superseded runs current again. Return how many were counted, by node and column."""
    if not run_ids:
        return {}
    runs = Run.objects.filter(pk__in=run_ids, is_current=None).unretired()
    runs = runs.exclude(status=Run.Status.CANCELLED)
    # Locked, and read after that: pruning may have deleted some.
    found = list(runs.select_for_update().order_by("pk").values_list("pk", "node_id", "status"))
    Run.objects.filter(pk__in=[pk for pk, *_ in found]).update(is_current=True)
    statuses: dict[int, list[int]] = defaultdict(list)
    for _, node_id, status in found:
        statuses[node_id].append(status)
    return {node_id: superseded(each) for node_id, each in statuses.items()}


def count_by_chunk(runs: QuerySet[Run]) -> dict[int, list[int]]:
    """Lock the runs. Return their chunks by the number of these runs in each."""
    locked = runs.select_for_update().order_by("pk").values_list("chunk_id", flat=True)
    found: dict[int, list[int]] = defaultdict(list)
    for chunk_id, number in Counter(locked).items():
        found[number].append(chunk_id)
    return found
