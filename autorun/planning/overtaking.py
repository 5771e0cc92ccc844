"""Waiting runs of a sweep or backfill, which go first when their row is saved."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from django.db.models import F

from autorun.models import Chunk, Run
from autorun.planning.cancelling import finish_emptied
from autorun.state.transactions import unlocked


def move(run_ids: Sequence[int], *, first_chunk: int, size: int) -> int:
    """Move waiting runs to chunks from `first_chunk` on, which the caller creates.

    Return how many. Each chunk takes `size` runs. A run stays if its chunk no longer waits, or is
    locked: another process is sending or cancelling it.
    """
    pending = Run.objects.current().pending().filter(pk__in=run_ids)
    waiting = Chunk.objects.waiting().filter(pk__in=pending.values("chunk_id")).order_by("pk")
    # Locked before their runs, as a worker does that finishes one.
    locked = unlocked(waiting).values_list("pk", flat=True)
    runs = pending.filter(chunk_id__in=list(locked)).select_for_update().order_by("pk")
    found = list(runs.values_list("pk", "chunk_id", "attempts"))
    if any(attempts for *_, attempts in found):
        size = 1  # one of them may kill its worker
    for number, begin in enumerate(range(0, len(found), size)):
        some = [pk for pk, *_ in found[begin : begin + size]]
        Run.objects.filter(pk__in=some).update(chunk_id=first_chunk + number)
    moved: dict[int, list[int]] = defaultdict(list)
    for chunk_id, runs_of_chunk in Counter(chunk_id for _, chunk_id, _ in found).items():
        moved[runs_of_chunk].append(chunk_id)
    for amount, chunk_ids in moved.items():
        Chunk.objects.filter(pk__in=chunk_ids).update(moved=F("moved") + amount)
        finish_emptied(chunk_ids)
    return len(found)
