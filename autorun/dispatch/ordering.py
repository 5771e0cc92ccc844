"""The waiting chunks of a node in the order of their release."""

import heapq
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from django.db import connections
from django.db.models import F, Q, QuerySet

from autorun.conf import settings
from autorun.dispatch.joining import join_small
from autorun.dispatch.room import Room
from autorun.models import Batch, Chunk
from autorun.state.clock import DatabaseNow
from autorun.state.sql import table

#: Waiting chunks read first, then four times as many, and so on. Usually there is room for one.
FIRST_PAGE = 2
#: With more batches than this, their chunks are read together.
MOST_BATCHES = 20
COLUMNS = ("node", "runner", "batch", "priority", "queue", "size")
IS_DUE = Q(state=Chunk.State.WAITING) & (Q(not_before=None) | Q(not_before__lte=DatabaseNow()))


def due(node: Any) -> QuerySet[Any]:
    """The node's waiting chunks that may start now, urgent ones first."""
    paused = (Batch.State.PAUSED, Batch.State.CANCELLED)
    chunks = Chunk.objects.of(node).filter(IS_DUE, node__paused_at=None)
    return chunks.exclude(batch__state__in=paused).order_by("-priority", "pk")


def fitting(
    node_id: int, room: Room, *, first: Sequence[Chunk] | None, but: Collection[int], by_batch: bool
) -> Iterator[Chunk]:
    """The chunks that fit, in their order, but none of `but`; `first` is the first page, if known.

    Each batch is read apart if one is paused or full: it may have very many chunks, and they may
    precede all others.
    """
    if first is not None and (not first or room.is_full_after(first[0])):
        return  # the first is the most urgent: if it does not fit, none does
    batches = _waiting_batches(node_id) if by_batch or room.full_batches else []
    pages = [_pages(node_id, room, but, first)]
    if 0 < len(batches) <= MOST_BATCHES:
        pages = [_pages(node_id, room, but, None, batch=pk) for pk in batches]
    for chunk in heapq.merge(*pages, key=lambda each: (-each.priority, each.pk)):
        if room.takes(chunk):
            yield chunk
        elif room.is_full_after(chunk):
            return


def _pages(
    node_id: int,
    room: Room,
    but: Collection[int],
    first: Sequence[Chunk] | None,
    **of_batch: int | None,
) -> Iterator[Chunk]:
    """The node's due chunks, or those of a batch, read a page at a time.

    Each page leaves out full batches and runners, which may have thousands of chunks.
    """
    size, after = FIRST_PAGE, Q()
    while not (room.is_full() or of_batch.get("batch") in room.full_batches):
        if size == FIRST_PAGE and first is not None and room.is_open_to_all():
            page = list(first)
        else:
            rows = with_window(due(node_id)).exclude(pk__in=but).filter(after, **of_batch)
            page = list(room.open_to(rows)[:size])
        is_last = len(page) < size
        yield from (page := join_small(page))
        if is_last:
            return
        last = page[-1]
        after = Q(priority__lt=last.priority) | Q(pk__gt=last.pk)
        after &= Q(priority__lte=last.priority)
        size *= 4


def with_window(chunks: QuerySet[Any]) -> QuerySet[Any]:
    """The chunks, with their batch's window, their node's run time and what a release reads."""
    known = {"window": F("batch__window"), "run_seconds": F("node__run_seconds")}
    found: QuerySet[Any] = chunks.annotate(**known).only(*COLUMNS)
    return found


def _waiting_batches(node_id: int) -> list[int | None]:
    """The batches with waiting chunks that are neither paused nor cancelled; None for no batch.

    One look into the index for each of them, however many chunks it has.
    """
    connection = connections[settings.DATABASE]
    chunks, batches = table(Chunk, connection), table(Batch, connection)
    of_node = f"c.node_id = %s AND c.state = {Chunk.State.WAITING:d}"
    smallest = f"SELECT MIN(c.batch_id) FROM {chunks} AS c WHERE {of_node}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH RECURSIVE b(id) AS ({smallest} AND c.batch_id > 0 UNION ALL "
            f"SELECT ({smallest} AND c.batch_id > b.id) FROM b WHERE b.id IS NOT NULL) "
            f"SELECT id FROM b WHERE COALESCE((SELECT t.state FROM {batches} AS t "
            "WHERE t.id = b.id), '') NOT IN (%s, %s)",
            [node_id, node_id, Batch.State.PAUSED, Batch.State.CANCELLED],
        )
        return [batch_id for (batch_id,) in cursor.fetchall()]
