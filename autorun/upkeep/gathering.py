"""Gathering: the failed runs of many old chunks move to a few, so that the others can be folded.

Only these runs may change after their chunk has ended: someone may ignore them. So a chunk that has
some is not folded, and progress() would sum up all of them for ever.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from django.db.models import F, OuterRef, Subquery

from autorun.models import Chunk, Node, Run
from autorun.state import pulses
from autorun.state.clock import RANDOM_BITS
from autorun.state.managers import ChunkQuerySet
from autorun.state.transactions import repeated_on_conflict, sum_of_each
from autorun.upkeep import folding

#: Seconds after its end before a chunk's failures are moved: pages count them by hour for a day.
QUIET = 25 * 3600
#: Chunks with failures that a node may keep, and those read in one transaction.
FEW = 500
READ_AT_ONCE = 5_000
#: Failures in one chunk: pages of runs read chunks as a whole.
MOST_FAILURES = 1_000

_DAY = int(dt.timedelta(days=1) / dt.timedelta(milliseconds=1)) << RANDOM_BITS


def gather_failures() -> int:
    """Gather the failed runs of nodes with many old chunks that have some; chunks freed of them."""
    many = Subquery(_with_failures(OuterRef("pk")).order_by().values("pk")[FEW : FEW + 1])
    nodes = Node.objects.annotate(many=many).filter(many__isnull=False).order_by("pk")
    return sum_of_each(
        lambda node_id: repeated_on_conflict(partial(_gather, node_id)),
        nodes.values_list("pk", flat=True),
        name="Gathering failures: node",
    )


def _with_failures(node: object) -> ChunkQuerySet[Chunk]:
    ended = folding.ended(Chunk.objects.of(node), quiet=QUIET)
    return ended.filter(failed__gt=0, failed__lt=MOST_FAILURES)


def _gather(node_id: int) -> int:
    pulses.hold(folding.LOCK)
    chunks = _with_failures(node_id).select_for_update().order_by("pk")[:READ_AT_ONCE]
    # Listed by day, origin and batch, a run is found as before.
    alike: dict[tuple[object, ...], list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        day = chunk.pk // _DAY
        alike[chunk.batch_id, chunk.runner, chunk.priority, day].append(chunk)
    return sum(map(_merge, alike.values()))


def _merge(chunks: Sequence[Chunk]) -> int:
    """Move the failed runs of `chunks` into the first of these. Return how many are now empty."""
    kept, moved, total = chunks[0], list[Chunk](), 0
    for chunk in chunks[1:]:
        if kept.failed + chunk.failed > MOST_FAILURES:
            total += _move(moved, kept)
            kept, moved = chunk, []
        else:
            kept.failed += chunk.failed
            moved.append(chunk)
    return total + _move(moved, kept)


def _move(chunks: Sequence[Chunk], kept: Chunk) -> int:
    if chunks:
        ids = [chunk.pk for chunk in chunks]
        Run.objects.failed().filter(chunk_id__in=ids).update(chunk_id=kept.pk)
        # In this order: MariaDB reads what it has just assigned.
        Chunk.objects.filter(pk__in=ids).update(moved=F("moved") + F("failed"), failed=0)
        number = sum(chunk.failed for chunk in chunks)
        Chunk.objects.filter(pk=kept.pk).update(
            size=F("size") + number, failed=F("failed") + number
        )
    return len(chunks)
