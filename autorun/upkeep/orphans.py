"""Orphans: pending runs whose chunk has ended or is missing.

No worker makes them. They are left when a database has forgotten commits under workers of an older
version, or when its tables were restored from backups of different times. Runs are looked at in the
order of their chunks' ids, a part at a time, so that the cost does not grow with their number.
"""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

from django.db.models import Count, Exists, OuterRef

from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.dispatch.messages import queue_of
from autorun.execution.results import Tally
from autorun.models import Batch, Chunk, Node, Run
from autorun.state import pulses
from autorun.state.clock import DatabaseNow, after_chunk_id, first_chunk_id_at
from autorun.state.leases import new_token
from autorun.state.managers import RunQuerySet
from autorun.state.transactions import repeated_on_conflict

#: Runs that one round checks.
PART = 20_000
#: The pulse that keeps the time from which chunks are checked next.
CURSOR = "orphans"
BEGINNING = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def orphans(*, least: int = 0, below: int | None = None) -> RunQuerySet[Run]:
    """The orphans of chunks with an id from `least` on, and `below` that if it is given."""
    going_on = Chunk.objects.unfinished().filter(pk=OuterRef("chunk_id"))
    found = Run.objects.pending().filter(~Exists(going_on), chunk_id__gte=least)
    return found if below is None else found.filter(chunk_id__lt=below)


def reopen_some() -> int:
    """Let the orphans of the next part be executed. Return how many runs."""
    begin = pulses.beat_of(CURSOR) or BEGINNING
    least = first_chunk_id_at(begin)
    runs = Run.objects.filter(chunk_id__gte=least).order_by("chunk_id")
    last = runs.values_list("chunk_id", flat=True)[PART : PART + 1].first()
    end = BEGINNING if last is None else after_chunk_id(last)
    part = orphans(least=least, below=None if last is None else first_chunk_id_at(end))
    chunk_ids = list(part.order_by().values_list("chunk_id", flat=True).distinct())
    # Configurations come from user code: none is created in the transactions below.
    labels = nodes.runners_by_node().labels if chunk_ids else {}
    reopened = 0
    for pk in chunk_ids:
        reopened += repeated_on_conflict(partial(_reopen, pk, labels))
    pulses.note(CURSOR, end)
    return reopened


def _reopen(chunk_id: int, labels: Mapping[str, Sequence[str]]) -> int:
    """Let the chunk wait again. Return how many runs it has: only those that are pending."""
    chunk = Chunk.objects.select_for_update().filter(pk=chunk_id).first()
    statuses = Run.objects.filter(chunk_id=chunk_id).order_by().values_list("status")
    found = Counter(dict(statuses.annotate(Count("pk"))))
    pending = found[Run.Status.PENDING]
    if not pending or (chunk is not None and chunk.state != Chunk.State.FINISHED):
        return 0  # another process was quicker
    if chunk is None:
        return pending if _make_again(chunk_id, pending, labels) else 0
    if chunk.is_folded:  # its counts are part of its node's, and stay there
        for name, none in asdict(Tally()).items():
            setattr(chunk, name, none)
        chunk.is_folded, chunk.size = False, pending
    else:
        _uncount(chunk, pending, found)
    chunk.state, chunk.finished_at, chunk.publications = Chunk.State.WAITING, None, 0
    chunk.token = new_token()
    chunk.save(using=settings.DATABASE)
    if chunk.batch_id is not None:
        # What is left of a cancelled batch is cancelled, by upkeep.
        Batch.objects.cancelled().filter(pk=chunk.batch_id).update(expires_at=DatabaseNow())
    return pending


def _make_again(chunk_id: int, size: int, labels: Mapping[str, Sequence[str]]) -> bool:
    """Insert a chunk that is gone, for a runner of its runs' node; False if none is known here."""
    node_ids = Run.objects.pending().filter(chunk_id=chunk_id).values("node_id")
    node = Node.objects.filter(pk__in=node_ids).first()
    label = None if node is None else next(iter(labels.get(node.digest, ())), None)
    if label is None:
        return False
    chunk = Chunk(pk=chunk_id, node=node, runner=label, size=size, priority=Chunk.Priority.SWEEP)
    chunk.queue = queue_of(registry.get(label))
    chunk.save(force_insert=True, using=settings.DATABASE)
    return True


def _uncount(chunk: Chunk, pending: int, found: Counter[int]) -> None:
    """Remove the pending runs from the counts of ended runs."""
    excess = pending - (chunk.size - chunk.succeeded - chunk.failed - chunk.cancelled - chunk.moved)
    chunk.not_applicable = min(chunk.not_applicable, found[Run.Status.NOT_APPLICABLE])
    found[Run.Status.CANCELLED] += found[Run.Status.NOT_APPLICABLE]
    for status in (Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.CANCELLED):
        name = status.name.lower()
        counted = getattr(chunk, name)
        taken = max(0, min(excess, counted - found[status]))
        setattr(chunk, name, counted - taken)
        excess -= taken
    chunk.size += excess
